//! The convergence law: any cut, any overlap, any page size, any kill gives the same replica; and what
//! a reader sees on the way is always a state that the source had.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use proptest::prelude::*;
use tidewire_protocol::Position;

use super::testing::{Made, dump, open, page, stranger};
use crate::page::Page;

/// A source: commits of changes, numbered through. Serves pages as the contract says, with cursors
/// that it can read itself.
struct Source {
    changes: Vec<Made>,
    /// Changes that are there so far.
    head: usize,
    /// A reader farther behind gets a catch-up over what is not superseded.
    live_backlog_max: usize,
}

/// Where a reader is: everything through `after`; inside a pass that ends at `until`, or live.
#[derive(Clone, Copy)]
struct At {
    after: usize,
    pass: Option<(usize, bool)>,
}

impl Source {
    fn new(commits: &[Vec<(u8, u8, Option<u8>)>], live_backlog_max: usize) -> Self {
        let mut changes = Vec::new();
        for (time, commit) in (1..).zip(commits) {
            for (ordinal, (collection, id, value)) in (0..).zip(commit) {
                changes.push(Made {
                    collection: ["invoices", "Users", "odd \"name'"][usize::from(*collection)]
                        .into(),
                    id: format!("id{id}"),
                    document: value.map(|v| format!(r#"{{"_id":"id{id}","v":{v},"f{v}":"x"}}"#)),
                    position: Position::new(time, ordinal),
                    quarantined: value.is_none() && id % 2 == 0,
                });
            }
        }
        Self { head: 0, changes, live_backlog_max }
    }

    fn at_boundary(&self, index: usize) -> bool {
        let time = |at: usize| self.changes.get(at).map(|change| change.position.cluster_time);
        index == 0 || index == self.head || time(index) != time(index - 1)
    }

    /// Lets so many more commits happen.
    fn advance(&mut self, commits: usize) {
        for _ in 0..commits {
            let Some(next) = self.changes.get(self.head) else { return };
            let time = next.position.cluster_time;
            self.head += self.changes[self.head..]
                .iter()
                .take_while(|c| c.position.cluster_time == time)
                .count();
        }
    }

    fn superseded(&self, index: usize, until: usize) -> bool {
        let change = &self.changes[index];
        let same = |later: &Made| later.collection == change.collection && later.id == change.id;
        self.changes[index + 1..until].iter().any(same)
    }

    fn page(&self, since: &str, limit: usize) -> Page {
        let at = match since {
            "" => At { after: 0, pass: Some((self.head, true)) },
            _ => parse(since),
        };
        let behind = self.head - at.after;
        let pass = at.pass.or((behind > self.live_backlog_max).then_some((self.head, false)));
        let until = pass.map_or(self.head, |(until, _)| until);
        let (mut after, mut taken) = (at.after, Vec::new());
        while after < until && taken.len() < limit {
            let skip = pass.is_some_and(|(until, from_nothing)| {
                self.superseded(after, until)
                    || (from_nothing && self.changes[after].is_tombstone())
            });
            if !skip {
                taken.push(self.changes[after].clone());
            }
            after += 1;
        }
        let ends = after == until;
        let complete = ends || (pass.is_none() && self.at_boundary(after));
        let next = At { after, pass: if ends { None } else { pass } };
        page(&taken, &show(next), after < self.head, complete)
    }

    /// What a replica shows that equals the source after `count` changes.
    fn state(&self, count: usize) -> String {
        let mut rows = BTreeMap::new();
        for change in &self.changes[..count] {
            rows.insert((change.collection.clone(), change.id.clone()), change);
        }
        let (mut out, mut aside) = (String::new(), String::new());
        for ((collection, id), change) in rows {
            let (list, what) = match &change.document {
                Some(document) => (&mut out, document.as_str()),
                None if change.quarantined => (&mut aside, "not UTF-8"),
                None => continue,
            };
            let at = change.position;
            writeln!(list, "{collection} {id} {what} 2026-01-01T00:00:00.000Z {at}").unwrap();
        }
        out + &aside
    }
}

fn show(at: At) -> String {
    let (until, blank) = at.pass.unwrap_or_default();
    format!("{}:{until}:{}", at.after, u8::from(blank))
}

fn parse(cursor: &str) -> At {
    let parts: Vec<usize> = cursor.split(':').map(|part| part.parse().unwrap()).collect();
    let pass = (parts[1] > 0).then_some((parts[1], parts[2] == 1));
    At { after: parts[0], pass }
}

/// One step of a reader's life.
#[derive(Clone, Debug)]
enum Step {
    /// Commits happen at the source.
    Commits(usize),
    /// The next page, of at most so many changes.
    Pull(usize),
    /// The next page, applied twice.
    Twice(usize),
    /// The process dies; another one goes on.
    Kill,
    /// The log that gave out the incomplete cursor is gone.
    Foreign,
    /// Start anew beside the old data.
    Resync,
    /// Pages from an older complete cursor again.
    Overlap(usize),
}

fn steps(overlaps: bool) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..6_usize).prop_map(Step::Commits),
        8 => (1..8_usize).prop_map(Step::Pull),
        2 => (1..8_usize).prop_map(Step::Twice),
        2 => Just(Step::Kill),
        1 => Just(Step::Foreign),
        1 => Just(Step::Resync),
        u32::from(overlaps) => (0..1000_usize).prop_map(Step::Overlap),
    ];
    prop::collection::vec(step, 1..40)
}

fn commits() -> impl Strategy<Value = Vec<Vec<(u8, u8, Option<u8>)>>> {
    let change = (0..3_u8, 0..5_u8, prop::option::weighted(0.7, 0..9_u8));
    prop::collection::vec(prop::collection::vec(change, 1..4), 1..40)
}

/// Leads a replica through the steps, then to the end; `strict` checks what a reader sees on the way.
fn live_through(source: &mut Source, steps: &[Step], strict: bool) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("replica.db");
    let mut writer = open(&path);
    let reader = stranger(&path);
    // The changes that the last complete page stood for; `None` before the first.
    let mut shown: Option<usize> = None;
    let mut complete_cursors = Vec::new();
    let finish = (0..2_000).map(|_| Step::Pull(7));
    source.advance(1);
    for step in steps.iter().cloned().chain([Step::Commits(1_000)]).chain(finish) {
        match step {
            Step::Commits(count) => source.advance(count),
            Step::Pull(limit) | Step::Twice(limit) => {
                let resume = writer.resume();
                let page = source.page(&resume.since, limit);
                if writer.apply(&page).unwrap().complete {
                    let after = Some(parse(&page.head().cursor).after);
                    prop_assert!(!page.head().has_more || shown <= after, "it goes back");
                    shown = after;
                    complete_cursors.push(page.head().cursor.clone());
                    if matches!(step, Step::Twice(_)) {
                        writer.apply(&page).unwrap();
                    }
                }
                if !page.head().has_more
                    && page.head().complete
                    && source.head == source.changes.len()
                {
                    break;
                }
            }
            Step::Kill => {
                drop(writer);
                writer = open(&path);
            }
            Step::Foreign => {
                writer.drop_partial().unwrap();
            }
            Step::Resync => {
                writer.begin_fill().unwrap();
            }
            Step::Overlap(choice) => {
                if complete_cursors.is_empty() || writer.resume().partial {
                    continue;
                }
                let page = source.page(&complete_cursors[choice % complete_cursors.len()], 100);
                writer.apply(&page).unwrap();
            }
        }
        if strict {
            let expected = shown.map_or(String::new(), |count| source.state(count));
            prop_assert_eq!(dump(&reader), expected);
        }
    }
    prop_assert_eq!(dump(&reader), source.state(source.changes.len()));
    drop(writer);
    let verdict: String = reader.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    prop_assert_eq!(verdict, "ok");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_page_size_and_kill_shows_only_states_of_the_source_and_ends_in_the_same_replica(
        commits in commits(), steps in steps(false), backlog in 0..30_usize,
    ) {
        live_through(&mut Source::new(&commits, backlog), &steps, true)?;
    }

    #[test]
    fn pages_that_overlap_end_in_the_same_replica(
        commits in commits(), steps in steps(true), backlog in 0..30_usize,
    ) {
        live_through(&mut Source::new(&commits, backlog), &steps, false)?;
    }
}
