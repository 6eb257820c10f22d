//! Checksums of the rows of small tables.

use super::LogError;

/// CRC-32 of all that a row of `table` holds; a text counts with its length.
pub(super) fn row_checksum(table: &str, numbers: &[u64], texts: &[&[u8]]) -> i64 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(table.as_bytes());
    for number in numbers {
        hasher.update(&number.to_be_bytes());
    }
    for text in texts {
        hasher.update(&(text.len() as u64).to_be_bytes());
        hasher.update(text);
    }
    i64::from(hasher.finalize())
}

/// A row that was read, and the checksums that it has and should have.
///
/// # Errors
/// [`LogError::Damaged`] where they differ.
pub(super) fn matching<T>(table: &str, row: T, has: i64, should: i64) -> Result<T, LogError> {
    if has == should {
        return Ok(row);
    }
    Err(LogError::Damaged(format!("a row of {table} does not match its checksum")))
}
