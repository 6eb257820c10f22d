//! The changes that every store is given: the same ones, made from their number alone, so that a
//! store can also be checked after a kill without keeping a copy of what it was given.

/// User channels; channel 0 is `role:admin`, channel `1 + n` is user n's.
pub const USERS: u32 = 2_000;

/// One change of about 600 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// From 1, without gaps.
    pub seq: u64,
    /// Order-preserving key of the document: a type byte and twelve more.
    pub key: [u8; 13],
    /// The two channels, ascending.
    pub channels: [u32; 2],
    /// An update of a document that the log has: its previous version is read first.
    pub update: bool,
    /// The document.
    pub doc: Vec<u8>,
}

/// How the keys of new documents follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// As ObjectIds do.
    Ascending,
    /// As random UUIDs do.
    Random,
}

/// A stream: `documents` inserts, then updates of documents picked at random, without end.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// How many documents there are.
    pub documents: u64,
    /// How their keys follow each other.
    pub keys: Keys,
}

impl Stream {
    /// The change with this number.
    pub fn change(&self, seq: u64) -> Change {
        let update = seq > self.documents;
        let number = if update { mix(seq) % self.documents } else { seq - 1 };
        let channels = [0, 1 + (mix(number ^ 0xABCD) % u64::from(USERS)) as u32];
        Change { seq, key: self.key(number), channels, update, doc: document(number, seq) }
    }

    fn key(&self, number: u64) -> [u8; 13] {
        let mut key = [7; 13];
        let head = match self.keys {
            Keys::Ascending => 0x6400_0000_0000_0000 + number / 50,
            Keys::Random => mix(number.wrapping_mul(31)),
        };
        key[1..9].copy_from_slice(&head.to_be_bytes());
        key[9..].copy_from_slice(&(number as u32).to_be_bytes());
        key
    }
}

/// Field names repeat from document to document, half of the bytes do not: as invoices do.
fn document(number: u64, seq: u64) -> Vec<u8> {
    const FIELDS: [&str; 12] = [
        "customer",
        "status",
        "amount",
        "currency",
        "issuedAt",
        "dueAt",
        "items",
        "reference",
        "notes",
        "address",
        "userId",
        "updatedAt",
    ];
    let mut doc = Vec::with_capacity(620);
    let mut state = mix(number) ^ seq.rotate_left(32);
    for field in FIELDS {
        doc.extend_from_slice(field.as_bytes());
        doc.extend_from_slice(&[0, 0, 0, 2]);
        for _ in 0..4 {
            state = mix(state);
            doc.extend_from_slice(&state.to_le_bytes()[..5]);
            doc.extend_from_slice(b"lorem ");
        }
    }
    doc
}

/// SplitMix64.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A row as the key-value stores keep it: key, channels, document.
pub fn encode(change: &Change) -> Vec<u8> {
    let mut row = Vec::with_capacity(21 + change.doc.len());
    row.extend_from_slice(&change.key);
    row.extend_from_slice(&channels_blob(&change.channels));
    row.extend_from_slice(&change.doc);
    row
}

/// Key, channels and document of an encoded row.
pub fn decode(row: &[u8]) -> ([u8; 13], [u32; 2], &[u8]) {
    (row[..13].try_into().expect("13 bytes"), channels_of(&row[13..21]), &row[21..])
}

/// The channels as they are stored beside the document.
pub fn channels_blob(channels: &[u32; 2]) -> [u8; 8] {
    let mut blob = [0; 8];
    blob[..4].copy_from_slice(&channels[0].to_le_bytes());
    blob[4..].copy_from_slice(&channels[1].to_le_bytes());
    blob
}

/// The reverse of [`channels_blob`].
pub fn channels_of(blob: &[u8]) -> [u32; 2] {
    let at = |i: usize| u32::from_le_bytes(blob[i..i + 4].try_into().expect("four bytes"));
    [at(0), at(4)]
}

/// Appends `seqs` (ascending, from `base`) as LEB128 differences.
pub fn write_postings(base: u64, seqs: &[u64], out: &mut Vec<u8>) {
    let mut previous = base;
    for &seq in seqs {
        let mut gap = seq - previous;
        while gap >= 0x80 {
            out.push(gap as u8 | 0x80);
            gap >>= 7;
        }
        out.push(gap as u8);
        previous = seq;
    }
}

/// The reverse of [`write_postings`].
pub fn read_postings(base: u64, blob: &[u8], out: &mut Vec<u64>) {
    let (mut seq, mut gap, mut shift) = (base, 0u64, 0);
    for &byte in blob {
        gap |= u64::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            seq += gap;
            out.push(seq);
            (gap, shift) = (0, 0);
        }
    }
}
