//! Durations as people type them: `500ms`, `90s`, `15m`, `1h`, `7d`.

use std::time::Duration;

/// A whole number and a unit: `ms`, `s`, `m`, `h`, `d`.
///
/// # Errors
/// Anything else; the message says what may be written.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    let ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
    match ms {
        Some(ms) if unit_ms > 0 => Ok(Duration::from_millis(ms)),
        _ => Err(format!("{text:?} is no duration: write 90s, 15m, 1h or 7d")),
    }
}
