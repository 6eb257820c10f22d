//! A number's one text by its exact value, whatever its BSON type.

use bson::Bson;

/// The digits behind the point that any double needs at most.
const DOUBLE_PLACES: usize = 1_074;

/// The text of a number in a key; `None` for what is no number.
pub(super) fn text(value: &Bson) -> Option<String> {
    match value {
        Bson::Int32(number) => Some(number.to_string()),
        Bson::Int64(number) => Some(number.to_string()),
        Bson::Double(number) if number.is_nan() => Some("NaN".into()),
        Bson::Double(number) if number.is_infinite() => {
            Some(if *number > 0.0 { "Infinity" } else { "-Infinity" }.into())
        }
        // All digits, exactly.
        Bson::Double(number) => Some(shortest(&format!("{number:.DOUBLE_PLACES$}"))),
        Bson::Decimal128(number) => Some(match number.to_string().as_str() {
            text if text.contains("NaN") => "NaN".into(),
            text if text.contains("Inf") => {
                if text.starts_with('-') { "-Infinity" } else { "Infinity" }.into()
            }
            text => shortest(text),
        }),
        _ => None,
    }
}

/// Whole numbers within int64 in plain digits; else plain notation or digits and a power of ten,
/// whichever is shorter, plain where both are as long.
fn shortest(text: &str) -> String {
    let (negative, text) = match text.strip_prefix('-') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let (mantissa, power) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let power: i32 = power.parse().expect("an exponent");
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let mut scale = power - i32::try_from(fraction.len()).expect("few digits");
    let kept = digits.trim_end_matches('0');
    scale += i32::try_from(digits.len() - kept.len()).expect("few digits");
    let digits = kept.trim_start_matches('0');
    if digits.is_empty() {
        return "0".into();
    }
    let sign = if negative { "-" } else { "" };
    let plain = plain(digits, scale);
    let powered = format!("{digits}E{scale}");
    let in_int64 = format!("{sign}{plain}").parse::<i64>().is_ok();
    let shortest = if in_int64 || plain.len() <= powered.len() { plain } else { powered };
    format!("{sign}{shortest}")
}

fn plain(digits: &str, scale: i32) -> String {
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    let count = i32::try_from(digits.len()).expect("few digits");
    if scale >= 0 {
        format!("{digits}{}", zeros(scale))
    } else if -scale < count {
        let point = usize::try_from(count + scale).expect("positive");
        format!("{}.{}", &digits[..point], &digits[point..])
    } else {
        format!("0.{}{digits}", zeros(-scale - count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_numbers_have_one_text() {
        let check = |value: Bson, expected: &str| assert_eq!(text(&value).unwrap(), expected);
        check(Bson::Int32(7), "7");
        check(Bson::Double(7.0), "7");
        check(Bson::Decimal128("7.00".parse().unwrap()), "7");
        check(Bson::Double(-0.0), "0");
        check(Bson::Double(0.5), "0.5");
        check(Bson::Double(-1.25), "-1.25");
        check(Bson::Decimal128("1E+300".parse().unwrap()), "1E300");
        check(Bson::Decimal128("25E-9".parse().unwrap()), "25E-9");
        check(Bson::Double(9_007_199_254_740_992.0), "9007199254740992");
        check(Bson::Decimal128("0.1".parse().unwrap()), "0.1");
        assert_ne!(text(&Bson::Double(0.1)).unwrap(), "0.1");
    }
}
