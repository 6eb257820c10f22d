//! Which of several servers is asked now, and which one after it. All of them follow the same source under
//! the same rules, so any of them can go on with any complete cursor.

use std::time::Duration;

/// The list, in the order in which it was given. Time is the machine's own: it moves when it is told.
#[derive(Debug)]
pub(super) struct Servers {
    seats: Vec<Seat>,
    current: usize,
    now: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seat {
    /// It is not asked before this.
    ready_at: Duration,
    /// By its own word.
    is_told: bool,
    /// It can't go on with the present cursor.
    refused: bool,
}

/// When the server that is now the current one may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Now,
    In(Duration),
}

impl Servers {
    pub(super) fn new(count: usize) -> Self {
        Self { seats: vec![Seat::default(); count.max(1)], current: 0, now: Duration::ZERO }
    }

    pub(super) fn current(&self) -> usize {
        self.current
    }

    pub(super) fn count(&self) -> usize {
        self.seats.len()
    }

    pub(super) fn passed(&mut self, time: Duration) {
        self.now += time;
    }

    /// The current one answered with what was asked for.
    pub(super) fn worked(&mut self) {
        self.seats[self.current].ready_at = self.now;
        self.forget_refusals();
    }

    /// There is another cursor to ask with.
    pub(super) fn forget_refusals(&mut self) {
        self.seats.iter_mut().for_each(|seat| seat.refused = false);
    }

    /// The current one failed and is left alone for `pause`: the turn is the next one's, in the list's
    /// order, that is not left alone itself; where all are, the one's whose pause ends first. `is_told`: by
    /// its own word.
    pub(super) fn failed(&mut self, pause: Duration, is_told: bool) -> Turn {
        let seat = &mut self.seats[self.current];
        (seat.ready_at, seat.is_told) = (self.now + pause, is_told);
        let others = self.others();
        if let Some(next) = others.clone().find(|&at| self.left(at).is_zero()) {
            self.current = next;
            return Turn::Now;
        }
        self.current = others.chain([self.current]).min_by_key(|&at| self.left(at)).unwrap_or(0);
        Turn::In(self.left(self.current))
    }

    /// The current one has said itself when it is to be asked again.
    pub(super) fn is_told(&self) -> bool {
        self.seats[self.current].is_told
    }

    /// The current one can't go on with the cursor: the turn of another one that has not refused it and
    /// may be asked within `patience`. `None`: all is to be copied anew, and the turn stays here.
    pub(super) fn refused(&mut self, patience: Duration) -> Option<Turn> {
        self.seats[self.current].refused = true;
        let others = self.others().filter(|&at| !self.seats[at].refused);
        let next = others.min_by_key(|&at| self.left(at))?;
        let left = self.left(next);
        if left > patience {
            return None;
        }
        self.current = next;
        Some(if left.is_zero() { Turn::Now } else { Turn::In(left) })
    }

    /// All but the current one, beginning with the one after it.
    fn others(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        let (count, current) = (self.seats.len(), self.current);
        (1..count).map(move |step| (current + step) % count)
    }

    fn left(&self, at: usize) -> Duration {
        self.seats[at].ready_at.saturating_sub(self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_is_asked_before_one_is_asked_again() {
        let mut servers = Servers::new(3);
        assert_eq!(servers.failed(4 * SECOND, false), Turn::Now);
        assert_eq!(servers.failed(2 * SECOND, false), Turn::Now);
        assert_eq!(servers.current(), 2);
        assert_eq!(servers.failed(9 * SECOND, false), Turn::In(2 * SECOND));
        assert_eq!(servers.current(), 1, "its pause ends first");
        servers.passed(3 * SECOND);
        assert_eq!(servers.failed(9 * SECOND, false), Turn::In(SECOND));
        assert_eq!(servers.current(), 0);
    }

    #[test]
    fn a_cursor_is_refused_by_all_before_it_is_given_up() {
        let mut servers = Servers::new(2);
        assert_eq!(servers.refused(SECOND), Some(Turn::Now));
        assert_eq!(servers.current(), 1);
        assert_eq!(servers.refused(SECOND), None, "both have refused it");
        servers.forget_refusals();
        assert_eq!(servers.refused(SECOND), Some(Turn::Now), "another cursor, another question");
        servers.failed(SECOND, false);
        assert_eq!(servers.current(), 1);
        assert_eq!(servers.refused(SECOND / 2), None, "the other one pauses for too long");
        assert_eq!((servers.refused(SECOND), servers.current()), (Some(Turn::In(SECOND)), 0));
    }

    #[test]
    fn a_single_server_is_asked_after_its_pause() {
        let mut servers = Servers::new(1);
        assert_eq!(servers.failed(SECOND, false), Turn::In(SECOND));
        assert_eq!(servers.refused(SECOND), None);
    }
}
