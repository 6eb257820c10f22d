//! Where one commit ends and the next begins: all changes of one cluster time are one commit, and a
//! batch may end in the middle of one.

/// What the boundary is told from: an event's cluster time and whether more of its transaction may
/// follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) cluster_time: u64,
    pub(super) in_transaction: bool,
}

/// How many of a batch's events, from its start, are in commits that are whole. The rest, all of one
/// cluster time, may go on in the next batch. For a batch without events it is 0 of 0: whatever was open
/// is whole, because the source has read past it.
///
/// - `through`: the leading timestamp of the batch's own token: beyond the last event's time it says that
///   nothing more of that time follows.
/// - `full`: the batch was cut because it was full.
pub(super) fn whole(marks: &[Mark], through: Option<u64>, full: bool) -> usize {
    let Some(last) = marks.last() else { return 0 };
    let ended = through > Some(last.cluster_time) || (!full && !last.in_transaction);
    if ended {
        return marks.len();
    }
    marks.iter().rposition(|mark| mark.cluster_time != last.cluster_time).map_or(0, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(times: &[(u64, bool)]) -> Vec<Mark> {
        let mark = |&(cluster_time, in_transaction)| Mark { cluster_time, in_transaction };
        times.iter().map(mark).collect()
    }

    #[track_caller]
    fn check(times: &[(u64, bool)], through: u64, full: bool, expected: usize) {
        assert_eq!(whole(&marks(times), Some(through), full), expected, "{times:?}");
    }

    #[test]
    fn single_changes_are_whole_as_they_come() {
        check(&[(1, false), (2, false), (3, false)], 3, false, 3);
        check(&[], 9, false, 0);
    }

    #[test]
    fn a_full_batch_leaves_its_last_time_open() {
        check(&[(1, false), (2, false), (3, false)], 3, true, 2);
        check(&[(3, false), (3, false)], 3, true, 0);
    }

    #[test]
    fn a_transaction_is_open_until_the_source_has_read_past_it() {
        check(&[(1, false), (5, true), (5, true)], 5, false, 1);
        check(&[(5, true), (5, true)], 5, true, 0);
        check(&[(5, true), (5, true)], 6, false, 2);
        check(&[(5, true), (6, false)], 6, false, 2);
        check(&[(5, true), (6, true)], 6, false, 1);
    }

    #[test]
    fn without_a_token_of_its_own_a_batch_ends_open_where_it_might() {
        assert_eq!(whole(&marks(&[(5, true)]), None, false), 0);
        assert_eq!(whole(&marks(&[(5, false)]), None, false), 1);
    }
}
