//! Change events as they come: raw bytes, read where they lie, each part only when it is wanted. One
//! odd event is an `Err` of its own and never spoils the batch it came in.

use bson::Timestamp;
use bson::raw::{RawBsonRef, RawDocument};

/// The field of an event that says that its document was left out ([`super::giants`]).
pub(super) const UNSENT: &str = "tidewireUnsent";

/// One change event, borrowed from the reply it came in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event<'a> {
    /// The event's resume token, `{_data: …}`.
    pub(super) token: &'a RawDocument,
    /// Where it stands; all changes of one transaction share it.
    pub(super) cluster_time: u64,
    /// When the source wrote it, milliseconds since 1970.
    pub(super) wall_time_ms: i64,
    /// The collection it is about; empty where it is about the whole database.
    pub(super) collection: &'a str,
    /// It belongs to a transaction, of which more may follow.
    pub(super) in_transaction: bool,
    /// What happened.
    pub(super) operation: Operation<'a>,
}

/// What a change event tells.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation<'a> {
    /// The document is this now.
    Insert { document: &'a RawDocument },
    /// The document is this now; `_id` may stand anywhere in it.
    Replace { document: &'a RawDocument },
    /// The document changed by this much, told in either form.
    Update { key: &'a RawDocument, description: &'a RawDocument },
    /// The document is something else now, which is too large to be told with its event.
    Unsent { key: &'a RawDocument },
    /// The document is gone.
    Delete { key: &'a RawDocument },
    /// The collection is gone, with all its documents.
    Drop,
    /// The whole database is gone.
    DropDatabase,
    /// The collection is called `to` now, in the database `database`; what was called so is gone.
    Rename { database: &'a str, to: &'a str },
    /// Nothing that changes documents.
    Other,
}

impl Operation<'_> {
    /// It is about one document, so it takes an ordinal.
    pub(super) fn is_row(&self) -> bool {
        matches!(
            self,
            Self::Insert { .. }
                | Self::Replace { .. }
                | Self::Update { .. }
                | Self::Unsent { .. }
                | Self::Delete { .. }
        )
    }
}

/// An event that does not say what it must.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the change event has no readable {part}")]
pub(super) struct Undecodable<'a> {
    /// What is missing.
    pub(super) part: &'static str,
    /// When it happened, where that much can be read.
    pub(super) cluster_time: Option<u64>,
    /// The collection, where that much can be read.
    pub(super) collection: &'a str,
    /// Its resume token, where that much can be read.
    pub(super) token: Option<&'a RawDocument>,
    /// It belongs to a transaction.
    pub(super) in_transaction: bool,
}

/// The top-level fields of an event, found in one walk.
#[derive(Default)]
struct Fields<'a> {
    token: Option<&'a RawDocument>,
    operation: &'a str,
    cluster_time: Option<u64>,
    wall_time_ms: Option<i64>,
    collection: &'a str,
    to: Option<&'a RawDocument>,
    document: Option<&'a RawDocument>,
    key: Option<&'a RawDocument>,
    description: Option<&'a RawDocument>,
    in_transaction: bool,
    unsent: bool,
}

impl<'a> Fields<'a> {
    fn read(event: &'a RawDocument) -> Self {
        let mut fields = Self::default();
        for element in event.iter_elements() {
            // A broken frame ends the walk; what is missing then is said by name.
            let Ok(element) = element else { break };
            let Ok(value) = element.value() else { continue };
            match (element.key().as_str(), value) {
                ("_id", RawBsonRef::Document(token)) => fields.token = Some(token),
                ("operationType", RawBsonRef::String(text)) => fields.operation = text,
                ("clusterTime", RawBsonRef::Timestamp(time)) => {
                    fields.cluster_time = Some(cluster_time(time));
                }
                ("wallTime", RawBsonRef::DateTime(time)) => {
                    fields.wall_time_ms = Some(time.timestamp_millis());
                }
                ("ns", RawBsonRef::Document(ns)) => {
                    fields.collection = ns.get_str("coll").unwrap_or_default();
                }
                ("to", RawBsonRef::Document(to)) => fields.to = Some(to),
                ("fullDocument", RawBsonRef::Document(document)) => {
                    fields.document = Some(document);
                }
                ("documentKey", RawBsonRef::Document(key)) => fields.key = Some(key),
                ("updateDescription" | "rawUpdateDescription", RawBsonRef::Document(delta)) => {
                    fields.description = Some(delta);
                }
                ("txnNumber", _) => fields.in_transaction = true,
                (UNSENT, _) => fields.unsent = true,
                _ => {}
            }
        }
        fields
    }
}

impl<'a> Event<'a> {
    /// Reads an event's frame; the documents in it are not looked into.
    ///
    /// # Errors
    /// [`Undecodable`] names the part that is missing or not of its type.
    pub(super) fn decode(event: &'a RawDocument) -> Result<Self, Undecodable<'a>> {
        let fields = Fields::read(event);
        let missing = |part| Undecodable {
            part,
            cluster_time: fields.cluster_time,
            collection: fields.collection,
            token: fields.token,
            in_transaction: fields.in_transaction,
        };
        let token = fields.token.ok_or_else(|| missing("_id"))?;
        let cluster_time = fields.cluster_time.ok_or_else(|| missing("clusterTime"))?;
        let document = || fields.document.ok_or_else(|| missing("fullDocument"));
        let key = || fields.key.ok_or_else(|| missing("documentKey"));
        let operation = match fields.operation {
            "insert" | "replace" | "update" if fields.unsent => Operation::Unsent { key: key()? },
            "insert" => Operation::Insert { document: document()? },
            "replace" => Operation::Replace { document: document()? },
            "update" => Operation::Update {
                key: key()?,
                description: fields.description.ok_or_else(|| missing("updateDescription"))?,
            },
            "delete" => Operation::Delete { key: key()? },
            "drop" => Operation::Drop,
            "dropDatabase" => Operation::DropDatabase,
            "rename" => {
                let to = fields.to.ok_or_else(|| missing("to"))?;
                Operation::Rename {
                    database: to.get_str("db").map_err(|_| missing("to.db"))?,
                    to: to.get_str("coll").map_err(|_| missing("to.coll"))?,
                }
            }
            "" => return Err(missing("operationType")),
            _ => Operation::Other,
        };
        Ok(Self {
            token,
            cluster_time,
            // The cluster time's own second is what an older source leaves.
            wall_time_ms: fields
                .wall_time_ms
                .unwrap_or_else(|| i64::from((cluster_time >> 32) as u32) * 1_000),
            collection: fields.collection,
            in_transaction: fields.in_transaction,
            operation,
        })
    }
}

/// A BSON timestamp as one number: seconds above, increment below.
pub(super) fn cluster_time(time: Timestamp) -> u64 {
    u64::from(time.time) << 32 | u64::from(time.increment)
}

/// The number as a BSON timestamp.
pub(super) fn timestamp(cluster_time: u64) -> Timestamp {
    Timestamp { time: (cluster_time >> 32) as u32, increment: cluster_time as u32 }
}

/// The leading timestamp of a resume token, all that is ever read of one: after the type byte `82` of
/// its key string, 16 hex digits. `None`: this is not a token as MongoDB 6 to 8 write them.
pub(super) fn token_time(token: &RawDocument) -> Option<u64> {
    let digits = token.get_str("_data").ok()?.strip_prefix("82")?.get(..16)?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use bson::{Bson, doc, rawdoc};

    use super::*;

    fn event(fields: bson::Document) -> bson::RawDocumentBuf {
        let mut event = doc! {
            "_id": { "_data": "8263D2A1B00000000A2B0229296E04" },
            "operationType": "insert",
            "clusterTime": Timestamp { time: 0x63d2_a1b0, increment: 10 },
            "ns": { "db": "shop", "coll": "invoices" },
            "documentKey": { "_id": 7 },
        };
        event.extend(fields);
        let event: bson::Document =
            event.into_iter().filter(|(_, value)| *value != Bson::Undefined).collect();
        bson::RawDocumentBuf::try_from(&event).unwrap()
    }

    #[test]
    fn a_token_tells_its_time_and_nothing_else() {
        let token = rawdoc! { "_data": "8263D2A1B00000000A2B0229296E04" };
        assert_eq!(token_time(&token), Some(0x63d2_a1b0_0000_000a));
        for bad in ["", "82", "8263D2A1B0", "9063D2A1B00000000A", "82é3D2A1B00000000A"] {
            assert_eq!(token_time(&rawdoc! { "_data": bad }), None, "{bad}");
        }
        assert_eq!(token_time(&rawdoc! {}), None);
    }

    #[test]
    fn a_cluster_time_is_its_timestamp() {
        let time = Timestamp { time: 5, increment: 9 };
        assert_eq!(cluster_time(time), 5 << 32 | 9);
        assert_eq!(timestamp(cluster_time(time)), time);
    }

    #[test]
    fn an_insert_brings_its_document() {
        let raw = event(doc! { "fullDocument": { "_id": 7, "a": 1 } });
        let event = Event::decode(&raw).unwrap();
        assert_eq!(event.collection, "invoices");
        assert_eq!(event.cluster_time, 0x63d2_a1b0_0000_000a);
        assert_eq!(event.wall_time_ms, 0x63d2_a1b0 * 1_000);
        assert!(!event.in_transaction);
        let Operation::Insert { document } = event.operation else { panic!("{event:?}") };
        assert_eq!(document.get_i32("a").unwrap(), 1);
    }

    #[test]
    fn an_event_of_a_transaction_says_so() {
        let raw = event(doc! { "operationType": "delete", "txnNumber": 4_i64, "lsid": {} });
        assert!(Event::decode(&raw).unwrap().in_transaction);
    }

    #[test]
    fn an_event_whose_document_was_left_out_says_of_which_one() {
        for kind in ["insert", "replace", "update"] {
            let raw = event(doc! { "operationType": kind, UNSENT: 17_000_000_i64 });
            let event = Event::decode(&raw).unwrap();
            assert!(event.operation.is_row());
            let Operation::Unsent { key } = event.operation else { panic!("{event:?}") };
            assert_eq!(key.get_i32("_id").unwrap(), 7);
        }
    }

    #[test]
    fn an_event_without_a_part_names_it_and_keeps_its_time() {
        let time = Some(0x63d2_a1b0_0000_000a);
        for (fields, part) in [
            (doc! {}, "fullDocument"),
            (doc! { "operationType": "update" }, "updateDescription"),
            (doc! { "operationType": "delete", "documentKey": Bson::Undefined }, "documentKey"),
            (doc! { "operationType": "rename" }, "to"),
            (doc! { "operationType": 3 }, "operationType"),
        ] {
            let raw = event(fields);
            let undecodable = Event::decode(&raw).unwrap_err();
            assert_eq!((undecodable.part, undecodable.cluster_time), (part, time));
            assert_eq!(undecodable.collection, "invoices");
        }
    }

    #[test]
    fn what_a_later_version_adds_is_no_error() {
        let raw = event(doc! { "operationType": "somethingNew" });
        assert!(matches!(Event::decode(&raw).unwrap().operation, Operation::Other));
    }
}
