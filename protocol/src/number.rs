//! Numbers by their exact value, whatever BSON type they have: what MongoDB compares when it decides
//! whether two `_id`s are one (seen on MongoDB 6.0.5: Double 0.1 and Decimal128 of its first 34
//! digits are two, 2^100 as Double and as Decimal128 are one).

use bson::spec::ElementType;

use crate::payload::decimal::Decimal;
use crate::raw::{self, Reason};

/// The significant digits that write any double exactly.
const DOUBLE_DIGITS_MAX: usize = 767;

/// A number by its exact value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Number {
    /// Every NaN, whatever its type, sign and payload.
    NaN,
    /// An infinity.
    Infinite {
        /// Below zero.
        negative: bool,
    },
    /// Every other number; zero is never negative.
    Finite(Finite),
}

/// A finite number: `±0.<digits> × 10^exponent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finite {
    /// Below zero.
    pub negative: bool,
    /// Where the decimal point stands, counted from before the first digit; 0 for zero.
    pub exponent: i32,
    /// ASCII digits, neither the first nor the last a `0`; empty for zero.
    pub digits: Vec<u8>,
}

impl Finite {
    /// `±<digits> × 10^scale`, the digits as they come.
    fn new(negative: bool, digits: &[u8], scale: i32) -> Self {
        let Some(first) = digits.iter().position(|&d| d != b'0') else {
            return Self { negative: false, exponent: 0, digits: Vec::new() };
        };
        let last = digits.iter().rposition(|&d| d != b'0').unwrap_or(first);
        let exponent = i32::try_from(digits.len() - first).expect("at most 767 digits") + scale;
        Self { negative, exponent, digits: digits[first..=last].to_vec() }
    }
}

impl From<i64> for Number {
    fn from(value: i64) -> Self {
        let mut text = itoa::Buffer::new();
        let digits = text.format(value.unsigned_abs());
        Self::Finite(Finite::new(value < 0, digits.as_bytes(), 0))
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        if value.is_nan() {
            return Self::NaN;
        }
        let negative = value < 0.0;
        if value.is_infinite() {
            return Self::Infinite { negative };
        }
        let magnitude = value.abs();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
        let whole = magnitude as u64;
        #[expect(clippy::cast_precision_loss, clippy::float_cmp, reason = "exact or not taken")]
        if whole < 1 << 53 && whole as f64 == magnitude {
            let mut text = itoa::Buffer::new();
            return Self::Finite(Finite::new(negative, text.format(whole).as_bytes(), 0));
        }
        // All the digits that a double can have: std prints them exactly, zeros after the last.
        let text = format!("{magnitude:.precision$e}", precision = DOUBLE_DIGITS_MAX - 1);
        let (mantissa, exponent) = text.split_once('e').expect("scientific notation");
        let digits: Vec<u8> = mantissa.bytes().filter(|&b| b != b'.').collect();
        let exponent: i32 = exponent.parse().expect("an exponent within a double's");
        let scale = exponent + 1 - i32::try_from(digits.len()).expect("767 digits");
        Self::Finite(Finite::new(negative, &digits, scale))
    }
}

impl From<Decimal> for Number {
    fn from(value: Decimal) -> Self {
        match value {
            Decimal::NaN => Self::NaN,
            Decimal::Infinite { negative } => Self::Infinite { negative },
            Decimal::Finite { negative, coefficient, exponent } => {
                let mut text = itoa::Buffer::new();
                let digits = text.format(coefficient).as_bytes();
                Self::Finite(Finite::new(negative, digits, exponent))
            }
        }
    }
}

impl Number {
    /// The number in a BSON value's bytes; none where the value is no number.
    ///
    /// # Errors
    /// Where the value is cut off.
    pub fn read(kind: ElementType, value: &[u8]) -> Result<Option<Self>, Reason> {
        Ok(Some(match kind {
            ElementType::Int32 => i64::from(i32::from_le_bytes(raw::fixed(value)?)).into(),
            ElementType::Int64 => i64::from_le_bytes(raw::fixed(value)?).into(),
            ElementType::Double => f64::from_le_bytes(raw::fixed(value)?).into(),
            ElementType::Decimal128 => Decimal::from_bytes(raw::fixed(value)?).into(),
            _ => return Ok(None),
        }))
    }

    /// Appends the number's one text: `NaN`, `Infinity`, `-Infinity`; an integer within int64 in plain
    /// digits; else the shorter of plain notation (`0.5`) and whole digits with an exponent
    /// (`1E300`, `25E-9`), plain where both are as long.
    pub fn write_text(&self, out: &mut Vec<u8>) {
        let finite = match self {
            Self::NaN => return out.extend_from_slice(b"NaN"),
            Self::Infinite { negative: false } => return out.extend_from_slice(b"Infinity"),
            Self::Infinite { negative: true } => return out.extend_from_slice(b"-Infinity"),
            Self::Finite(finite) => finite,
        };
        if finite.negative {
            out.push(b'-');
        }
        let digits = finite.digits.as_slice();
        let count = i32::try_from(digits.len()).expect("at most 767 digits");
        let scale = finite.exponent - count;
        let mut power = itoa::Buffer::new();
        let power = power.format(scale).as_bytes();
        if fits_int64(finite) || plain_length(finite) <= digits.len() + 1 + power.len() {
            write_plain(finite, out);
        } else {
            out.extend_from_slice(digits);
            out.push(b'E');
            out.extend_from_slice(power);
        }
    }
}

fn fits_int64(number: &Finite) -> bool {
    let is_whole =
        number.exponent >= 0 && number.digits.len() <= number.exponent.unsigned_abs() as usize;
    let limit: &[u8; 19] =
        if number.negative { b"9223372036854775808" } else { b"9223372036854775807" };
    // Left-aligned digits of the same length compare as the numbers do.
    is_whole
        && (number.exponent < 19 || (number.exponent == 19 && number.digits.as_slice() <= limit))
}

/// Bytes that [`write_plain`] would write, the sign not counted.
fn plain_length(number: &Finite) -> usize {
    let digits = number.digits.len();
    let exponent = number.exponent.unsigned_abs() as usize;
    match number.exponent {
        ..=0 => "0.".len() + exponent + digits,
        _ if digits > exponent => digits + ".".len(),
        _ => exponent,
    }
}

fn write_plain(number: &Finite, out: &mut Vec<u8>) {
    let digits = number.digits.as_slice();
    let exponent = number.exponent.unsigned_abs() as usize;
    match number.exponent {
        _ if digits.is_empty() => out.push(b'0'),
        ..=0 => {
            out.extend_from_slice(b"0.");
            out.resize(out.len() + exponent, b'0');
            out.extend_from_slice(digits);
        }
        _ if digits.len() > exponent => {
            out.extend_from_slice(&digits[..exponent]);
            out.push(b'.');
            out.extend_from_slice(&digits[exponent..]);
        }
        _ => {
            out.extend_from_slice(digits);
            out.resize(out.len() + exponent - digits.len(), b'0');
        }
    }
}
