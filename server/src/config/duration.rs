//! Durations as people write them: `90s`, `15m`, `12h`, `7d`.

use std::time::Duration;

/// Reads a whole number and a unit: `ms`, `s`, `m` (minutes), `h`, `d` or `w`.
///
/// # Errors
/// Anything else, and what overflows; the message says what may be written.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let milliseconds_per_unit: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 7 * 86_400_000,
        _ => return Err(refusal(text)),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(milliseconds_per_unit))
        .map(Duration::from_millis)
        .ok_or_else(|| refusal(text))
}

fn refusal(text: &str) -> String {
    format!(
        "{text:?} is not a duration; write a whole number and a unit, as \"7d\", \"12h\", \"30m\" or \"90s\""
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_is_a_duration() {
        let check = |text, seconds| {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        };
        check("90s", 90);
        check("15m", 900);
        check("12h", 43_200);
        check("7d", 604_800);
        check("1w", 604_800);
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
    }

    #[test]
    fn what_is_not_a_duration_is_refused() {
        for bad in [
            "",
            "7",
            "d",
            "-7d",
            "7 d",
            "7days",
            "1.5h",
            "99999999999999999999d",
            "9999999999999999w",
        ] {
            let message = parse_duration(bad).expect_err(bad);
            assert!(message.contains("\"7d\""), "{message}");
        }
    }
}
