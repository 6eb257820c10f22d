//! SQLite's write-ahead log as a file: whether what follows its last whole frame was cut off, as a crash
//! leaves it, or is damaged.
//!
//! SQLite takes a frame that does not match its checksum for the end. Where the frames after it have been
//! moved into the main file already, that makes a file of two times. (The format: sqlite.org/fileformat.html,
//! "The Write-Ahead Log".)

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

const HEADER_LEN: usize = 32;
const FRAME_HEADER_LEN: usize = 24;
/// The last bit tells how the checksum reads its words.
const MAGIC: u32 = 0x377f_0682;
const PAGE_LEN_MAX: usize = 65_536;

/// True where frames that belong to the log lie beyond the place where SQLite sees its end, or the
/// header is damaged. A log that ends in the middle of a frame, or in frames of an earlier round, is as
/// it should be; so is one that is not there.
pub(super) fn is_suspect(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut header = [0; HEADER_LEN];
    if !fill(&mut file, &mut header)? {
        return Ok(false);
    }
    let magic = word(&header, 0);
    let page_len = word(&header, 8) as usize;
    let mut sum = Sum { big_endian: magic & 1 == 1, first: 0, second: 0 };
    sum.add(&header[..24]);
    let whole = magic & !1 == MAGIC
        && (sum.first, sum.second) == (word(&header, 24), word(&header, 28))
        && page_len.is_power_of_two()
        && page_len <= PAGE_LEN_MAX;
    if !whole {
        return Ok(true);
    }
    let mut frame = vec![0; FRAME_HEADER_LEN + page_len];
    let mut ended = false;
    while fill(&mut file, &mut frame)? {
        let of_this_round = frame[8..16] == header[16..24];
        if ended {
            if of_this_round {
                return Ok(true);
            }
            continue;
        }
        sum.add(&frame[..8]);
        sum.add(&frame[FRAME_HEADER_LEN..]);
        let matches = (sum.first, sum.second) == (word(&frame, 16), word(&frame, 20));
        if of_this_round && !matches {
            return Ok(true);
        }
        ended = !of_this_round;
    }
    Ok(false)
}

/// False where the file ends before.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

/// SQLite's running checksum.
struct Sum {
    big_endian: bool,
    first: u32,
    second: u32,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        for pair in bytes.chunks_exact(8) {
            let [first, second] = [0, 4].map(|at| {
                let word = word(pair, at);
                if self.big_endian { word } else { word.swap_bytes() }
            });
            self.first = self.first.wrapping_add(first).wrapping_add(self.second);
            self.second = self.second.wrapping_add(second).wrapping_add(self.first);
        }
    }
}
