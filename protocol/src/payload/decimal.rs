//! Decimal128: the bits of IEEE 754-2008 (binary integer decimal) and the text that the BSON
//! specification prescribes.

/// The exponent's bias.
const BIAS: i32 = 6176;
/// Coefficients of more than 34 digits are no canonical numbers and count as 0.
const COEFFICIENT_MAX: u128 = 10_u128.pow(34) - 1;

/// A Decimal128 taken apart; digits and exponent as stored, so `12.50` is not `12.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decimal {
    /// Quiet and signalling, either sign.
    NaN,
    /// An infinity.
    Infinite {
        /// Below zero.
        negative: bool,
    },
    /// `±coefficient × 10^exponent`.
    Finite {
        /// The sign bit; zero may have it.
        negative: bool,
        /// 0 to 34 digits of nine.
        coefficient: u128,
        /// -6176 to 6111.
        exponent: i32,
    },
}

impl Decimal {
    /// Takes the 16 bytes of a BSON Decimal128 apart. Every bit pattern is a number or NaN.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let bits = u128::from_le_bytes(bytes);
        let negative = bits >> 127 == 1;
        // The five bits after the sign tell the special values; else the top two of them tell where
        // the exponent's 14 bits stand.
        match (bits >> 122) & 0x1F {
            0x1F => return Self::NaN,
            0x1E => return Self::Infinite { negative },
            _ => {}
        }
        let is_wide = (bits >> 125) & 3 == 3;
        let exponent =
            i32::from(((bits >> if is_wide { 111 } else { 113 }) & 0x3FFF) as u16) - BIAS;
        // The wide form has an implied 0b100 on top: always more than 34 digits.
        let coefficient = if is_wide { 0 } else { bits & ((1 << 113) - 1) };
        let coefficient = if coefficient > COEFFICIENT_MAX { 0 } else { coefficient };
        Self::Finite { negative, coefficient, exponent }
    }
}

/// Appends the text of a Decimal128, digits kept: `12.50`, `1E+3`, `-0`, `NaN`, `-Infinity`.
pub(super) fn write_decimal(bytes: [u8; 16], out: &mut Vec<u8>) {
    let (negative, coefficient, exponent) = match Decimal::from_bytes(bytes) {
        Decimal::NaN => return out.extend_from_slice(b"NaN"),
        Decimal::Infinite { negative: false } => return out.extend_from_slice(b"Infinity"),
        Decimal::Infinite { negative: true } => return out.extend_from_slice(b"-Infinity"),
        Decimal::Finite { negative, coefficient, exponent } => (negative, coefficient, exponent),
    };
    if negative {
        out.push(b'-');
    }
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(coefficient).as_bytes();
    let count = i32::try_from(digits.len()).expect("at most 34 digits");
    let adjusted = exponent + count - 1;
    if exponent > 0 || adjusted < -6 {
        out.push(digits[0]);
        if count > 1 {
            out.push(b'.');
            out.extend_from_slice(&digits[1..]);
        }
        out.extend_from_slice(if adjusted < 0 { b"E-" } else { b"E+" });
        out.extend_from_slice(itoa::Buffer::new().format(adjusted.unsigned_abs()).as_bytes());
        return;
    }
    let decimals = exponent.unsigned_abs() as usize;
    match digits.len().checked_sub(decimals) {
        Some(whole) if decimals == 0 => out.extend_from_slice(&digits[..whole]),
        Some(whole) if whole > 0 => {
            out.extend_from_slice(&digits[..whole]);
            out.push(b'.');
            out.extend_from_slice(&digits[whole..]);
        }
        _ => {
            out.extend_from_slice(b"0.");
            out.resize(out.len() + decimals - digits.len(), b'0');
            out.extend_from_slice(digits);
        }
    }
}
