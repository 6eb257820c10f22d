//! Digests against `goldens/digests.jsonl`, which another implementation wrote, and what must hold of
//! them.

use std::path::Path;

use proptest::prelude::*;
use serde::Deserialize;
use tidewire_protocol::digest::{
    CollectionDigest, DEPTH_MAX, DigestPage, HashSum, NumberedDigest, RangeDigest, document_hash,
    range_of,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Golden {
    name: String,
    mongo_id: String,
    payload: String,
    hash: String,
    range_at_depth4: u32,
    range_at_depth12: u32,
}

fn goldens() -> Vec<Golden> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/digests.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn hashes_and_ranges_are_as_the_goldens_say() {
    let mut all = CollectionDigest::new(4);
    for golden in goldens() {
        let (key, payload) = (golden.mongo_id.as_bytes(), golden.payload.as_bytes());
        assert_eq!(document_hash(key, payload).to_string(), golden.hash, "{}", golden.name);
        assert_eq!(range_of(key, 4), golden.range_at_depth4, "{}", golden.name);
        assert_eq!(range_of(key, DEPTH_MAX), golden.range_at_depth12, "{}", golden.name);
        assert_eq!(range_of(key, 0), 0);
        all.add(key, payload);
    }
    let total = all.total();
    assert_eq!(total.count, goldens().len() as u64);
    assert_eq!(total.digest.to_string(), "4984fd490e070c7056e5123e1d57afde");
}

#[test]
fn an_answer_is_read_as_it_is_written() {
    let text = concat!(
        r#"{"success":true,"serverTime":"2026-01-01T12:00:00.000Z","collection":"plans","#,
        r#""position":"0000000000000001.00000000","depth":4,"#,
        r#""ranges":[{"range":3,"count":2,"digest":"000000000000000000000000000000ff"}],"next":null}"#
    );
    let page: DigestPage<'_> = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&page).unwrap(), text);
    let mut whole = CollectionDigest::new(4);
    assert!(whole.add_part(page.depth, &page.ranges));
    assert_eq!(whole.filled().collect::<Vec<_>>(), page.ranges);
    assert!(!whole.add_part(5, &page.ranges), "cut in another way");
    let beyond = NumberedDigest { range: 16, digest: RangeDigest::default() };
    assert!(!whole.add_part(4, &[beyond]), "a range that there is not");
}

#[test]
fn what_is_no_hash_is_refused() {
    let long = "0".repeat(33);
    for bad in
        ["", "0", "+000000000000000000000000000000f", "0000000000000000000000000000000G", &long]
    {
        assert!(bad.parse::<HashSum>().is_err(), "{bad}");
    }
}

proptest! {
    /// Parts in any order add up to the whole, and a document that differs shows in its range alone.
    #[test]
    fn parts_add_up_and_a_difference_shows_where_it_is(
        documents in prop::collection::btree_map(".{0,8}", ".{0,8}", 1..40),
        cut in any::<prop::sample::Index>(),
        changed in any::<prop::sample::Index>(),
        depth in 0..=DEPTH_MAX,
    ) {
        let documents: Vec<(String, String)> = documents.into_iter().collect();
        let of = |documents: &[(String, String)]| {
            let mut digest = CollectionDigest::new(depth);
            for (key, payload) in documents {
                digest.add(key.as_bytes(), payload.as_bytes());
            }
            digest
        };
        let whole = of(&documents);
        let cut = cut.index(documents.len());
        let mut sum = of(&documents[cut..]);
        let part: Vec<NumberedDigest> = of(&documents[..cut]).filled().collect();
        prop_assert!(sum.add_part(depth, &part));
        prop_assert_eq!(&sum, &whole);
        let mut other = documents.clone();
        let changed = changed.index(documents.len());
        other[changed].1.push('x');
        let range = range_of(other[changed].0.as_bytes(), depth);
        prop_assert_eq!(of(&other).differing(&whole), vec![range]);
        other.remove(changed);
        prop_assert_eq!(of(&other).differing(&whole), vec![range]);
    }
}
