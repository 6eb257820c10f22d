//! The one walk over a document that all encodings share: names, nesting, hidden fields, repeated
//! names, and where an error was. What a single value looks like is the [`Style`]'s.

use std::collections::HashMap;

use bson::spec::ElementType;

use super::EncodeError;
use super::exclude::{Hidden, Node};
use super::text::write_string;
use crate::raw::{self, Elements, Reason};

/// How values are written.
pub(crate) trait Style {
    /// Whether two different documents must never have one text. If so, repeated names stay, and a
    /// document that looks like an encoded value is marked.
    const IS_ONE_TO_ONE: bool;

    /// Appends a value that is no document, array or code with scope.
    fn write_scalar(kind: ElementType, value: &[u8], out: &mut Vec<u8>) -> Result<(), Reason>;
}

/// Documents within documents; MongoDB itself takes 179 and can be set up to 250.
const DEPTH_MAX: u32 = 255;

/// What went wrong, and the names from the value up to the document.
pub(crate) struct Fault {
    reason: Reason,
    path_upward: Vec<Box<[u8]>>,
}

impl Fault {
    fn new(reason: Reason) -> Box<Self> {
        Box::new(Self { reason, path_upward: Vec::new() })
    }

    #[cold]
    fn inside(mut self: Box<Self>, name: &[u8]) -> Box<Self> {
        self.path_upward.push(name.into());
        self
    }
}

type Walked<T = ()> = Result<T, Box<Fault>>;

/// Appends `document` without what is `hidden`. After an error nothing is appended.
pub(super) fn write<S: Style>(
    document: &[u8],
    hidden: Option<&Node>,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let start = out.len();
    write_document::<S>(document, hidden, 1, out).map_err(|fault| {
        out.truncate(start);
        EncodeError::new(fault.reason, fault.path_upward.iter().rev())
    })
}

/// Appends one value of a document at `depth`.
pub(crate) fn write_value<S: Style>(
    kind: ElementType,
    value: &[u8],
    hidden: Option<&Node>,
    depth: u32,
    out: &mut Vec<u8>,
) -> Walked {
    match kind {
        ElementType::EmbeddedDocument => write_document::<S>(value, hidden, depth + 1, out),
        ElementType::Array => write_array::<S>(value, hidden, depth + 1, out),
        ElementType::JavaScriptCodeWithScope => write_code_with_scope::<S>(value, depth, out),
        _ => S::write_scalar(kind, value, out).map_err(Fault::new),
    }
}

fn write_code_with_scope<S: Style>(value: &[u8], depth: u32, out: &mut Vec<u8>) -> Walked {
    let (code, scope) = raw::code_with_scope(value).map_err(Fault::new)?;
    out.extend_from_slice(b"{\"$code\":");
    write_string(code, out).map_err(Fault::new)?;
    out.extend_from_slice(b",\"$scope\":");
    write_document::<S>(scope, None, depth + 1, out).map_err(|f| f.inside(b"$scope"))?;
    out.push(b'}');
    Ok(())
}

fn write_array<S: Style>(
    bytes: &[u8],
    hidden: Option<&Node>,
    depth: u32,
    out: &mut Vec<u8>,
) -> Walked {
    let mut elements = elements_at(bytes, depth)?;
    out.push(b'[');
    let mut index = 0_u32;
    while let Some(element) =
        elements.step().map_err(|damage| Fault::new(damage.reason).inside(damage.name))?
    {
        if index > 0 {
            out.push(b',');
        }
        write_value::<S>(element.kind, element.value, hidden, depth, out)
            .map_err(|fault| fault.inside(index.to_string().as_bytes()))?;
        index += 1;
    }
    out.push(b']');
    Ok(())
}

fn write_document<S: Style>(
    bytes: &[u8],
    hidden: Option<&Node>,
    depth: u32,
    out: &mut Vec<u8>,
) -> Walked {
    let start = out.len();
    let marked = S::IS_ONE_TO_ONE && looks_encoded(bytes);
    if marked {
        out.extend_from_slice(b"{\"$document\":");
    }
    // Names hardly ever repeat: write as if they did not, and start over where one does.
    if let Names::Repeat = write_fields::<S>(bytes, hidden, depth, None, out)? {
        out.truncate(start);
        let last = last_of_each(bytes);
        write_fields::<S>(bytes, hidden, depth, Some(&last), out)?;
    }
    if marked {
        out.push(b'}');
    }
    Ok(())
}

/// Whether a reader could take the document for an encoded value: its first name begins with `$`.
/// (`$ref`, a DBRef's first name, is no encoding's.)
fn looks_encoded(document: &[u8]) -> bool {
    document.get(5) == Some(&b'$') && !document[5..].starts_with(b"$ref\0")
}

/// What [`write_fields`] found out about the names.
enum Names {
    Written,
    /// Some name comes twice, or there are too many to watch: nothing usable was written.
    Repeat,
}

/// Where each name stands last, counted from 0.
fn last_of_each(bytes: &[u8]) -> HashMap<&[u8], usize> {
    let mut last = HashMap::new();
    let Ok(mut elements) = Elements::of(bytes) else { return last };
    let mut index = 0;
    while let Ok(Some(element)) = elements.step() {
        last.insert(element.name, index);
        index += 1;
    }
    last
}

/// Appends `{…}`; with `last` only the last field of each name.
fn write_fields<S: Style>(
    bytes: &[u8],
    hidden: Option<&Node>,
    depth: u32,
    last: Option<&HashMap<&[u8], usize>>,
    out: &mut Vec<u8>,
) -> Walked<Names> {
    let mut elements = elements_at(bytes, depth)?;
    let mut watch = Watch::default();
    let mut comma: &[u8] = b"{";
    let mut index = 0;
    while let Some(element) =
        elements.step().map_err(|damage| Fault::new(damage.reason).inside(damage.name))?
    {
        let at = index;
        index += 1;
        let inside = match hidden.map_or(Hidden::Nothing, |node| node.at(element.name)) {
            Hidden::Whole => continue,
            Hidden::Inside(node) => Some(node),
            Hidden::Nothing => None,
        };
        match last {
            Some(last) if last.get(element.name) != Some(&at) => continue,
            None if !S::IS_ONE_TO_ONE && watch.may_repeat(element.name, bytes) => {
                return Ok(Names::Repeat);
            }
            _ => {}
        }
        out.extend_from_slice(comma);
        comma = b",";
        write_string(element.name, out).map_err(Fault::new).map_err(|f| f.inside(element.name))?;
        out.push(b':');
        write_value::<S>(element.kind, element.value, inside, depth, out)
            .map_err(|fault| fault.inside(element.name))?;
    }
    if comma == b"{" {
        out.push(b'{');
    }
    out.push(b'}');
    Ok(Names::Written)
}

fn elements_at(bytes: &[u8], depth: u32) -> Walked<Elements<'_>> {
    if depth > DEPTH_MAX {
        return Err(Fault::new("nested deeper than MongoDB allows"));
    }
    Elements::of(bytes).map_err(Fault::new)
}

/// Notices that a name may have come before, cheaply: a few bits a name, and a look at the names
/// themselves where the bits are taken.
#[derive(Default)]
struct Watch {
    bits: [u64; 4],
    count: u32,
}

impl Watch {
    /// Beyond this many names a table is cheaper.
    const NAMES_MAX: u32 = 64;

    fn may_repeat(&mut self, name: &[u8], document: &[u8]) -> bool {
        self.count += 1;
        let hash = Self::hash(name);
        let (word, bit) = (usize::from(hash >> 6) & 3, 1 << (hash & 63));
        let is_taken = self.bits[word] & bit != 0;
        self.bits[word] |= bit;
        self.count > Self::NAMES_MAX || (is_taken && Self::is_repeat(name, document))
    }

    /// Eight bits made of the length and the first and last eight bytes.
    fn hash(name: &[u8]) -> u8 {
        let word = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        };
        let head = word(&name[..name.len().min(8)]);
        let tail = word(&name[name.len().saturating_sub(8)..]);
        let mixed =
            (head ^ tail.rotate_left(29) ^ name.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> 56) as u8
    }

    /// Whether an element before the one that `name` is borrowed from has the same name.
    #[cold]
    fn is_repeat(name: &[u8], document: &[u8]) -> bool {
        let Ok(mut elements) = Elements::of(document) else { return false };
        while let Ok(Some(element)) = elements.step() {
            if std::ptr::eq(element.name.as_ptr(), name.as_ptr()) {
                return false;
            }
            if element.name == name {
                return true;
            }
        }
        false
    }
}
