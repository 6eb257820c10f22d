//! Who waits for a pull that was asked for: told what that pull brought, and not what another exchange
//! did that happened to come first.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::status::LastSync;

/// Told what a pull brought.
pub(crate) type Asker = oneshot::Sender<LastSync>;

/// Pulls are numbered as they are sent; a page is known by the number of its pull.
#[derive(Debug, Default)]
pub(crate) struct Pulls {
    /// The last pull's.
    sent: u64,
    /// What is in flight is a pull, and not the wait for the push socket's next.
    in_flight: bool,
    /// Pages with the replica: their pull (`None`: the push socket told it), and whether there was more.
    applying: VecDeque<(Option<u64>, bool)>,
    /// Each with the first pull that counts.
    askers: Vec<(Asker, u64)>,
}

impl Pulls {
    pub(crate) fn sent_one(&mut self) {
        self.sent += 1;
        self.in_flight = true;
    }

    pub(crate) fn listens(&mut self) {
        self.in_flight = false;
    }

    /// The number of the last pull.
    pub(crate) fn last(&self) -> u64 {
        self.sent
    }

    /// Somebody waits for what a pull after `last` brings.
    pub(crate) fn ask(&mut self, asker: Asker, last: u64) {
        self.askers.push((asker, last + 1));
    }

    /// Somebody waits for a pull that has not been sent.
    pub(crate) fn is_owed(&self) -> bool {
        self.askers.iter().any(|(_, first)| *first > self.sent)
    }

    /// What was in flight came, and goes to the replica.
    pub(crate) fn came(&mut self, has_more: bool) {
        self.applying.push_back((self.in_flight.then_some(self.sent), has_more));
    }

    /// What was in flight failed: nobody waits for a pull any more that was sent by now.
    pub(crate) fn failed(&mut self, timestamp: impl Fn() -> String) {
        if self.in_flight {
            let sent = self.sent;
            self.answer(sent, || LastSync { success: false, timestamp: timestamp(), applied: 0 });
        }
    }

    /// No pull is coming: whoever waits is told.
    pub(crate) fn none(&mut self, timestamp: impl Fn() -> String) {
        self.answer(u64::MAX, || LastSync { success: false, timestamp: timestamp(), applied: 0 });
    }

    /// The oldest page that was with the replica is applied.
    pub(crate) fn applied(&mut self, complete: bool, last_sync: Option<&LastSync>) {
        let Some((pull, has_more)) = self.applying.pop_front() else { return };
        if let (Some(pull), true, false, Some(brought)) = (pull, complete, has_more, last_sync) {
            self.answer(pull, || brought.clone());
        }
    }

    /// What was with the replica is dropped.
    pub(crate) fn dropped(&mut self) {
        self.applying.clear();
    }

    fn answer(&mut self, pull: u64, brought: impl Fn() -> LastSync) {
        let (told, waiting) = std::mem::take(&mut self.askers)
            .into_iter()
            .partition(|(_, first): &(Asker, u64)| *first <= pull);
        self.askers = waiting;
        for (asker, _) in told {
            // Who asked may have gone.
            asker.send(brought()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brought(applied: u64) -> LastSync {
        LastSync { success: true, timestamp: String::new(), applied }
    }

    #[test]
    fn what_another_exchange_brought_is_not_the_answer() {
        let mut pulls = Pulls::default();
        pulls.sent_one();
        pulls.came(false);
        pulls.listens();
        // Told by the socket while the first pull's page is with the replica; then somebody asks.
        pulls.came(false);
        let (asker, mut told) = oneshot::channel();
        let before = pulls.last();
        pulls.sent_one();
        pulls.ask(asker, before);
        assert!(!pulls.is_owed());
        pulls.applied(true, Some(&brought(1)));
        pulls.applied(true, Some(&brought(2)));
        assert!(told.try_recv().is_err());
        pulls.came(true);
        pulls.applied(true, Some(&brought(3)));
        assert!(told.try_recv().is_err(), "there is more");
        pulls.sent_one();
        pulls.came(false);
        pulls.applied(true, Some(&brought(4)));
        assert_eq!(told.try_recv().unwrap(), brought(4));
    }

    #[test]
    fn who_asks_while_a_pull_is_under_way_waits_for_the_next_one() {
        let mut pulls = Pulls::default();
        pulls.sent_one();
        let (asker, mut told) = oneshot::channel();
        pulls.ask(asker, pulls.last());
        assert!(pulls.is_owed());
        pulls.came(false);
        pulls.applied(true, Some(&brought(1)));
        assert!(told.try_recv().is_err());
        pulls.sent_one();
        pulls.failed(String::new);
        assert!(!told.try_recv().unwrap().success);
    }
}
