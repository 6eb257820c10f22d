//! Tables of events and what the machine makes of them.

use tidewire_protocol::{Position, ResyncReason};

use super::failures::{DOUBT_HELD, ONCE_ATTEMPTS_MAX, PARTIAL_PATIENCE_MAX, RETRY_AFTER_MAX};
use super::*;

const NONE: Duration = Duration::ZERO;

fn options() -> Options {
    Options {
        servers: 1,
        once: false,
        poll_only: false,
        push: false,
        push_only: false,
        wipe: false,
        poll_interval: Duration::from_secs(300),
        seed: 1,
    }
}

fn head(cursor: &str, count: usize, has_more: bool, complete: bool) -> PageHead {
    PageHead {
        cursor: cursor.into(),
        checkpoint: Position::ZERO,
        has_more,
        complete,
        count,
        progress: None,
        server_time_ms: 0,
        source_lag_ms: None,
    }
}

fn fetched(cursor: &str, count: usize, has_more: bool, complete: bool) -> Event {
    let took = Duration::from_secs(20);
    Event::Fetched { head: head(cursor, count, has_more, complete), took }
}

fn failed(failure: Failure) -> Event {
    Event::FetchFailed { failure, took: Duration::from_millis(300) }
}

fn applied(complete: bool) -> Event {
    Event::Applied(Applied { complete, count: 1 })
}

fn resume(since: &str) -> Resume {
    Resume { since: since.into(), initialized: !since.is_empty(), ..Resume::default() }
}

fn pull(since: &str, wait: Duration) -> Action {
    Action::Pull { since: since.into(), wait }
}

fn unreachable() -> Failure {
    Failure::Unreachable("no route".into())
}

fn busy(seconds: u64) -> Failure {
    Failure::Busy { message: "copying".into(), retry_after: Some(Duration::from_secs(seconds)) }
}

/// A machine that is caught up at `c1` and holds a long poll.
fn live(options: Options) -> Machine {
    let mut machine = Machine::new(options);
    assert_eq!(machine.on(Event::Opened(resume("c0"))), [Action::FetchCollections]);
    assert_eq!(machine.on(Event::Collections(Ok(()))), [pull("c0", NONE)]);
    assert_eq!(machine.on(fetched("c1", 1, false, true)), [Action::Apply]);
    machine.on(applied(true));
    machine
}

/// The delay of the one timer that the actions arm.
#[track_caller]
fn armed(actions: &[Action]) -> Duration {
    match actions {
        [.., Action::Arm(delay)] => *delay,
        other => panic!("no timer in {other:?}"),
    }
}

#[test]
fn a_first_copy_keeps_one_page_ahead_of_the_replica_and_no_more() {
    let mut machine = Machine::new(options());
    assert_eq!(machine.state(), State::Starting);
    machine.on(Event::Opened(Resume::default()));
    assert_eq!(machine.on(Event::Collections(Ok(()))), [pull("", NONE)]);
    assert_eq!(machine.on(fetched("a", 9, true, false)), [Action::Apply, pull("a", NONE)]);
    assert_eq!(machine.state(), State::Syncing);
    assert_eq!(machine.on(fetched("b", 9, true, false)), [Action::Apply], "two pages wait");
    assert_eq!(machine.on(applied(false)), [pull("b", NONE)]);
    assert_eq!(machine.on(applied(false)), []);
    assert_eq!(machine.on(fetched("c", 9, false, true)), [Action::Apply]);
    assert_eq!(machine.on(applied(true)), [pull("c", LONG_POLL_WAIT)]);
    assert_eq!((machine.state(), machine.transport()), (State::Live, TransportName::LongPoll));
}

#[test]
fn every_failure_leads_to_its_own_state() {
    let table = [
        (unreachable(), State::Offline, false),
        (Failure::Garbage("a portal".into()), State::Offline, false),
        (Failure::Server { status: 500, message: "oh".into() }, State::Offline, false),
        (busy(3), State::Live, true),
        (Failure::Unauthorized("expired".into()), State::NeedsAuth, true),
        (Failure::Challenged("a gateway".into()), State::NeedsAuth, true),
        (Failure::Forbidden("nothing".into()), State::NeedsAuth, true),
    ];
    for (failure, state, online) in table {
        let mut machine = live(options());
        let actions = machine.on(failed(failure.clone()));
        assert_eq!((machine.state(), machine.online()), (state, online), "{failure}");
        assert_eq!(machine.error(), Some(failure.to_string().as_str()));
        assert!(!actions.iter().any(|action| matches!(action, Action::Pull { .. })), "{failure}");
    }
}

fn filling() -> Resume {
    Resume { initialized: true, filling: true, partial: true, since: String::new() }
}

/// A machine in each of the states in which something is asked for; what it asks from.
fn asking() -> [(Machine, State, &'static str); 5] {
    let mut starting = Machine::new(options());
    starting.on(Event::Opened(Resume::default()));
    assert_eq!(starting.on(Event::Collections(Ok(()))), [pull("", NONE)]);
    let mut syncing = live(options());
    syncing.on(fetched("c2", 5, true, false));
    syncing.on(applied(false));
    let mut polling = live(Options { poll_only: true, ..options() });
    assert_eq!(polling.on(Event::Timer), [pull("c1", NONE)]);
    let mut resyncing = live(options());
    resyncing.on(failed(Failure::Resync(ResyncReason::CursorTooOld)));
    resyncing.on(Event::Opened(filling()));
    assert_eq!(resyncing.on(Event::Collections(Ok(()))), [pull("", NONE)]);
    let all = [
        (starting, State::Starting, ""),
        (syncing, State::Syncing, "c2"),
        (live(options()), State::Live, "c1"),
        (polling, State::Polling, "c1"),
        (resyncing, State::Resyncing, ""),
    ];
    for (machine, state, _) in &all {
        assert_eq!(machine.state(), *state);
    }
    all
}

#[test]
fn a_failure_leads_to_the_same_state_from_every_other_and_the_next_page_back() {
    let lost = [
        unreachable(),
        Failure::Garbage("a portal".into()),
        Failure::Server { status: 500, message: "oh".into() },
    ];
    for failure in lost {
        for (mut machine, state, since) in asking() {
            armed(&machine.on(failed(failure.clone())));
            assert_eq!(machine.state(), State::Offline, "{state:?}: {failure}");
            assert_eq!(machine.on(Event::Timer), [pull(since, NONE)], "{state:?}: {failure}");
            assert_eq!(machine.state(), State::Offline, "{state:?}: until something has come");
            let complete = matches!(state, State::Live | State::Polling);
            machine.on(fetched("c9", 1, !complete, complete));
            machine.on(applied(complete));
            let back = if state == State::Starting { State::Syncing } else { state };
            assert_eq!(machine.state(), back, "{failure}");
        }
    }
    let refused = [
        Failure::Unauthorized("expired".into()),
        Failure::Challenged("a gateway".into()),
        Failure::Forbidden("nothing".into()),
    ];
    for failure in refused {
        for (mut machine, state, _) in asking() {
            machine.on(failed(failure.clone()));
            assert_eq!(machine.state(), State::NeedsAuth, "{state:?}: {failure}");
        }
    }
    for (mut machine, state, _) in asking() {
        let old = machine.on(failed(Failure::Resync(ResyncReason::CursorTooOld)));
        assert_eq!(old, [Action::BeginFill], "{state:?}");
        // A copy that follows another without success waits.
        let slowly = machine.on(Event::Opened(filling()));
        assert_eq!(matches!(slowly[..], [Action::Arm(_)]), state == State::Resyncing, "{state:?}");
        assert_eq!(machine.state(), State::Resyncing, "{state:?}");
    }
}

#[test]
fn a_busy_server_leaves_the_state_as_it_was_and_a_client_that_was_out_of_reach_is_back() {
    for was_offline in [false, true] {
        for (mut machine, state, since) in asking() {
            if was_offline {
                machine.on(failed(unreachable()));
                assert_eq!(machine.on(Event::Timer), [pull(since, NONE)]);
                assert_eq!(machine.state(), State::Offline, "{state:?}");
            }
            armed(&machine.on(failed(busy(3))));
            let left = if state == State::Starting { State::Syncing } else { state };
            assert_eq!((machine.state(), machine.online()), (left, true), "{was_offline}");
            assert_eq!(machine.on(Event::Timer), [pull(since, NONE)], "{state:?}");
        }
    }
}

#[test]
fn another_users_token_begins_from_nothing_whatever_was_under_way() {
    for (mut machine, state, _) in asking() {
        let begun = machine.on(Event::TokenSet(Resume::default()));
        assert_eq!(begun, [Action::CancelPull, Action::FetchCollections], "{state:?}");
        let shown = if state == State::Starting { state } else { State::Syncing };
        assert_eq!(machine.state(), shown, "{state:?}");
        assert_eq!(machine.on(Event::Collections(Ok(()))), [pull("", NONE)], "{state:?}");
    }
    for failure in [Failure::Unauthorized("expired".into()), busy(60), unreachable()] {
        for (mut machine, state, _) in asking() {
            machine.on(failed(failure.clone()));
            let begun = machine.on(Event::TokenSet(Resume::default()));
            assert_eq!(begun, [Action::FetchCollections], "{state:?}: {failure}");
            // Where no server answers, nobody knows yet whether one answers her.
            let shown = if failure == unreachable() { State::Starting } else { State::Syncing };
            assert_eq!((machine.state(), machine.error()), (shown, None), "{state:?}: {failure}");
            assert_eq!(machine.on(Event::Collections(Ok(()))), [pull("", NONE)]);
        }
    }
}

#[test]
fn a_wake_asks_at_once_a_busy_server_too() {
    for (mut machine, state, since) in asking() {
        let hung_up = [Action::CancelPull, pull(since, NONE)];
        assert_eq!(machine.on(Event::Woke), hung_up, "{state:?}");
        for failure in [busy(60), unreachable()] {
            armed(&machine.on(failed(failure.clone())));
            assert_eq!(machine.on(Event::Woke), [pull(since, NONE)], "{state:?}: {failure}");
        }
        // Its delay is the same as ever after that, for everybody else.
        armed(&machine.on(failed(busy(60))));
        assert_eq!(machine.on(Event::PullNow), [], "{state:?}");
    }
}

#[test]
fn a_refused_token_is_never_tried_again_by_itself() {
    let mut machine = live(options());
    let refused = failed(Failure::Unauthorized("expired".into()));
    assert_eq!(machine.on(refused), [Action::WaitForToken]);
    assert_eq!(machine.on(Event::PullNow), []);
    assert_eq!(machine.on(Event::Woke), []);
    assert_eq!(machine.on(Event::CollectionsDue), []);
    assert_eq!(machine.on(Event::TokenSet(resume("c1"))), [Action::FetchCollections]);
    assert_eq!(machine.on(Event::Collections(Ok(()))), [pull("c1", NONE)]);
}

#[test]
fn data_goes_with_the_token_only_where_the_app_wants_it_and_the_server_itself_refuses() {
    let failures = [
        (Failure::Unauthorized("expired".into()), true),
        (Failure::Forbidden("nothing".into()), true),
        (Failure::Challenged("a gateway".into()), false),
        (unreachable(), false),
        (Failure::Garbage("a portal".into()), false),
        (Failure::Server { status: 500, message: "oh".into() }, false),
        (busy(3), false),
        (Failure::Resync(ResyncReason::CursorTooOld), false),
    ];
    for (failure, costs) in failures {
        let made: [fn(Options) -> Machine; 2] = [live, |options| pushed_with(options)];
        for (wipe, make) in [true, false].into_iter().flat_map(|w| made.map(|make| (w, make))) {
            let mut machine = make(Options { wipe, ..options() });
            let wipes = machine.on(failed(failure.clone())).contains(&Action::Wipe);
            assert_eq!(wipes, costs && wipe, "{failure}");
        }
    }
    let mut machine = live(Options { wipe: true, ..options() });
    let refused = failed(Failure::Unauthorized("expired".into()));
    assert_eq!(machine.on(refused), [Action::Wipe, Action::WaitForToken]);
    assert_eq!(machine.on(Event::Wiped(Resume::default())), []);
    assert_eq!(machine.state(), State::NeedsAuth);
    assert_eq!(machine.on(Event::TokenSet(Resume::default())), [Action::FetchCollections]);
    assert_eq!(machine.on(Event::Collections(Ok(()))), [pull("", NONE)], "from nothing");
    // A token that may see nothing is asked for again, from nothing too.
    let mut machine = live(Options { wipe: true, ..options() });
    machine.on(failed(Failure::Forbidden("nothing".into())));
    machine.on(Event::Wiped(Resume::default()));
    assert_eq!(machine.on(Event::Timer), [Action::FetchCollections], "they are forgotten, too");
    assert_eq!(machine.on(Event::Collections(Ok(()))), [pull("", NONE)]);
}

#[test]
fn a_pull_that_is_under_way_is_sent_again_with_the_renewed_token() {
    let mut machine = pushed();
    assert_eq!(machine.on(Event::PullNow), [pull("c1", NONE)]);
    assert!(machine.renews());
    assert_eq!(machine.on(Event::TokenRenewed), [pull("c1", NONE)], "not told of the old one");
}

#[test]
fn a_token_that_sees_nothing_yet_is_tried_at_the_pace_of_polls() {
    let mut machine = live(options());
    let actions = machine.on(failed(Failure::Forbidden("nothing".into())));
    assert_eq!(actions, [Action::WaitForToken, Action::Arm(Duration::from_secs(300))]);
    assert_eq!(machine.on(Event::Timer), [pull("c1", NONE)]);
}

#[test]
fn a_server_that_names_a_delay_gets_it() {
    let mut machine = live(options());
    let delay = armed(&machine.on(failed(busy(7))));
    assert!(delay >= Duration::from_secs(7) && delay <= Duration::from_secs(9), "{delay:?}");
    assert_eq!(machine.on(Event::PullNow), [], "nobody is let past a busy server's delay");
    assert_eq!(machine.on(Event::Timer), [pull("c1", NONE)]);
    let delay = armed(&machine.on(failed(busy(1 << 40))));
    assert!(delay <= RETRY_AFTER_MAX * 2, "and not more than an hour");
}

#[test]
fn an_unreachable_server_is_tried_less_and_less_often() {
    let mut machine = live(options());
    let mut last = NONE;
    for attempt in 0..20 {
        let delay = armed(&machine.on(failed(unreachable())));
        assert!(delay <= RETRY.1 && delay >= RETRY.0 / 2, "attempt {attempt}: {delay:?}");
        assert!(delay > last / 3, "attempt {attempt}");
        last = delay;
        assert_eq!(machine.on(Event::Timer), [pull("c1", NONE)]);
    }
    machine.on(fetched("c2", 0, false, true));
    assert!(machine.online() && machine.error().is_none());
    assert_eq!(machine.on(applied(true)), [pull("c2", LONG_POLL_WAIT)]);
    let delay = armed(&machine.on(failed(unreachable())));
    assert!(delay <= RETRY.0, "success makes the next delay short again");
}

#[test]
fn a_cursor_that_is_too_old_starts_a_copy_beside_the_old_data() {
    let mut machine = live(options());
    let old = failed(Failure::Resync(ResyncReason::CursorTooOld));
    assert_eq!(machine.on(old), [Action::BeginFill]);
    assert_eq!(machine.on(Event::Opened(filling())), [Action::FetchCollections]);
    assert_eq!(machine.state(), State::Resyncing);
    assert_eq!(machine.on(Event::Collections(Ok(()))), [pull("", NONE)]);
    machine.on(fetched("n1", 5, false, true));
    machine.on(applied(true));
    assert_eq!(machine.state(), State::Live);
}

#[test]
fn inside_a_catch_up_a_foreign_log_costs_only_what_was_not_complete() {
    let mut machine = live(options());
    machine.on(fetched("c2", 5, true, false));
    machine.on(applied(false));
    let foreign = Failure::Resync(ResyncReason::ForeignLog);
    assert_eq!(machine.on(failed(foreign.clone())), [Action::DropPartial]);
    machine.on(Event::Opened(resume("c1")));
    assert_eq!(machine.on(Event::Collections(Ok(()))), [pull("c1", NONE)]);
    // The last complete cursor is foreign as well: from nothing.
    assert_eq!(machine.on(failed(foreign)), [Action::BeginFill]);
}

#[test]
fn resyncs_that_follow_each_other_slow_down() {
    let mut machine = live(options());
    for round in 0..5 {
        let failure = Failure::Resync(ResyncReason::RulesChanged);
        assert_eq!(machine.on(failed(failure)), [Action::BeginFill]);
        let actions = machine.on(Event::Opened(filling()));
        if round == 0 {
            assert_eq!(actions, [Action::FetchCollections]);
        } else {
            assert!(armed(&actions) >= RESYNC.0);
            assert_eq!(machine.on(Event::Timer), [Action::FetchCollections]);
        }
        machine.on(Event::Collections(Ok(())));
    }
}

#[test]
fn a_failure_waits_until_the_pages_before_it_are_applied() {
    let mut machine = Machine::new(options());
    machine.on(Event::Opened(Resume::default()));
    machine.on(Event::Collections(Ok(())));
    machine.on(fetched("a", 9, true, false));
    assert_eq!(machine.on(failed(Failure::Resync(ResyncReason::ForeignLog))), []);
    assert_eq!(machine.on(applied(false)), [Action::DropPartial]);
}

#[test]
fn long_polls_that_never_get_through_become_polls_and_are_tried_again_later() {
    let mut machine = live(options());
    let ended = || Event::FetchFailed { failure: unreachable(), took: Duration::from_secs(10) };
    for _ in 0..LONG_POLL_DOUBT_MAX / DOUBT_HELD {
        machine.on(ended());
        assert_eq!(machine.on(Event::Timer), [pull("c1", NONE)]);
        machine.on(fetched("c1", 0, false, true));
        machine.on(applied(true));
    }
    assert_eq!((machine.state(), machine.transport()), (State::Polling, TransportName::Poll));
    // The next timer is the probe's; a probe that fails goes back to polls, for longer.
    assert_eq!(machine.on(Event::Timer), [pull("c1", LONG_POLL_WAIT)]);
    machine.on(ended());
    assert_eq!(machine.on(Event::Timer), [pull("c1", NONE)]);
    machine.on(fetched("c1", 0, false, true));
    assert!(armed(&machine.on(applied(true))) >= PROBE.0);
    assert_eq!(machine.on(Event::Timer), [pull("c1", LONG_POLL_WAIT)]);
    machine.on(fetched("c2", 1, false, true));
    assert_eq!(machine.on(applied(true)), [pull("c2", LONG_POLL_WAIT)]);
    assert_eq!(machine.state(), State::Live);
}

#[test]
fn a_few_cut_connections_do_not_end_long_polls() {
    let mut machine = live(options());
    for _ in 0..LONG_POLL_DOUBT_MAX / 2 {
        machine.on(failed(unreachable()));
        assert_eq!(machine.state(), State::Offline);
        assert_eq!(machine.on(Event::Timer), [pull("c1", NONE)]);
        assert_eq!(machine.state(), State::Offline, "until something has come");
        machine.on(fetched("c1", 0, false, true));
        assert_eq!(machine.on(applied(true)), [pull("c1", LONG_POLL_WAIT)]);
    }
}

#[test]
fn one_that_is_to_poll_never_holds_a_poll() {
    let mut machine = live(Options { poll_only: true, ..options() });
    assert_eq!((machine.state(), machine.transport()), (State::Polling, TransportName::Poll));
    for round in 0..50 {
        assert_eq!(machine.on(Event::Timer), [pull("c1", NONE)], "round {round}");
        machine.on(fetched("c1", 0, false, true));
        let delay = armed(&machine.on(applied(true)));
        assert!(delay >= Duration::from_secs(300) && delay <= Duration::from_secs(360));
    }
}

#[test]
fn a_server_that_does_not_hold_polls_is_not_hammered() {
    let mut machine = live(options());
    for round in 0..50 {
        let took = Duration::from_millis(2);
        machine.on(Event::Fetched { head: head("c1", 0, false, true), took });
        let delay = armed(&machine.on(applied(true)));
        assert!(delay >= PACE.0 / 2, "round {round}: {delay:?}");
        assert_eq!(machine.on(Event::Timer), [pull("c1", LONG_POLL_WAIT)]);
    }
}

#[test]
fn a_page_whose_cursor_stands_still_is_not_followed() {
    let mut machine = live(options());
    let actions = machine.on(fetched("c1", 5, true, true));
    assert!(!actions.contains(&Action::Apply), "{actions:?}");
    assert_eq!(machine.state(), State::Offline);
}

#[test]
fn news_are_fetched_at_once_on_demand_and_after_a_sleep() {
    let mut machine = live(options());
    assert_eq!(machine.on(Event::PullNow), [Action::CancelPull, pull("c1", NONE)]);
    assert_eq!(machine.on(Event::PullNow), [], "it is being fetched");
    assert_eq!(machine.on(Event::Woke), [Action::CancelPull, pull("c1", NONE)], "that may be dead");
    machine.on(failed(unreachable()));
    assert_eq!(machine.on(Event::PullNow), [pull("c1", NONE)]);
}

#[test]
fn the_list_of_collections_is_renewed_between_pages() {
    let mut machine = live(options());
    assert_eq!(machine.on(Event::CollectionsDue), []);
    machine.on(fetched("c2", 1, false, true));
    assert_eq!(machine.on(applied(true)), [Action::FetchCollections]);
    assert_eq!(machine.state(), State::Live);
    let vague = Failure::Server { status: 404, message: "not found".into() };
    assert_eq!(machine.on(Event::Collections(Err(vague))), [pull("c2", NONE)]);
}

#[test]
fn a_single_run_ends_when_caught_up_and_gives_up_early() {
    let once = Options { once: true, ..options() };
    let mut machine = Machine::new(once);
    machine.on(Event::Opened(Resume::default()));
    machine.on(Event::Collections(Ok(())));
    machine.on(fetched("a", 1, false, true));
    assert_eq!(machine.on(applied(true)), [Action::Halt(Outcome::CaughtUp)]);
    assert_eq!(machine.on(Event::Timer), [], "the end is the end");

    let mut machine = Machine::new(once);
    machine.on(Event::Opened(Resume::default()));
    for attempt in 1.. {
        let actions = machine.on(Event::Collections(Err(unreachable())));
        if actions == [Action::Halt(Outcome::Unreachable(unreachable()))] {
            assert_eq!(attempt, ONCE_ATTEMPTS_MAX);
            break;
        }
        machine.on(Event::Timer);
    }

    let mut machine = Machine::new(once);
    machine.on(Event::Opened(Resume::default()));
    machine.on(Event::Collections(Ok(())));
    let forbidden = Failure::Forbidden("nothing".into());
    let actions = machine.on(failed(forbidden.clone()));
    assert_eq!(actions, [Action::Halt(Outcome::Refused(forbidden))]);
}

fn pushing_options() -> Options {
    Options { push: true, ..options() }
}

fn listen(since: &str) -> Action {
    Action::Listen { since: since.into(), complete: true }
}

/// A machine that is caught up at `c1` and has been heard on its socket.
fn pushed() -> Machine {
    pushed_with(options())
}

fn pushed_with(options: Options) -> Machine {
    let mut machine = Machine::new(Options { push: true, ..options });
    machine.on(Event::Opened(resume("c0")));
    machine.on(Event::Collections(Ok(())));
    machine.on(fetched("c1", 1, false, true));
    assert_eq!(machine.on(applied(true)), [listen("c1")]);
    assert_eq!(machine.transport(), TransportName::LongPoll, "not open yet");
    assert_eq!(machine.on(Event::Listening), [listen("c1")]);
    machine
}

#[test]
fn a_machine_that_is_caught_up_listens_and_goes_on_listening() {
    let mut machine = pushed();
    assert_eq!((machine.state(), machine.transport()), (State::Live, TransportName::Push));
    for n in 2..9 {
        let cursor = format!("c{n}");
        assert_eq!(machine.on(fetched(&cursor, 1, false, true)), [Action::Apply]);
        assert_eq!(machine.on(applied(true)), [listen(&cursor)]);
    }
    // What comes in parts is not shown as caught up before its end.
    machine.on(fetched("d", 9, false, false));
    let partial = Action::Listen { since: "d".into(), complete: false };
    assert_eq!(machine.on(applied(false)), [partial]);
    assert_eq!(machine.state(), State::Syncing);
    machine.on(fetched("e", 9, false, true));
    assert_eq!(machine.on(applied(true)), [listen("e")]);
    assert_eq!(machine.state(), State::Live);
}

#[test]
fn a_socket_that_breaks_is_followed_by_a_pull_then_long_polls_then_another_try() {
    let mut machine = pushed();
    assert_eq!(machine.on(failed(unreachable())), [pull("c1", NONE)]);
    machine.on(fetched("c2", 1, false, true));
    // The server may have been started anew, with other collections.
    assert_eq!(machine.on(applied(true)), [Action::FetchCollections]);
    assert_eq!(machine.on(Event::Collections(Ok(()))), [pull("c2", NONE)]);
    machine.on(fetched("c2", 0, false, true));
    let actions = machine.on(applied(true));
    let [Action::Pull { wait, .. }] = actions.as_slice() else { panic!("{actions:?}") };
    assert!(*wait > NONE && *wait <= LONG_POLL_WAIT);
    assert_eq!((machine.state(), machine.transport()), (State::Live, TransportName::LongPoll));
    // 20 s later the delay is over.
    machine.on(fetched("c3", 1, false, true));
    assert_eq!(machine.on(applied(true)), [listen("c3")]);
    assert_eq!(machine.on(Event::Listening), [listen("c3")]);
    assert_eq!(machine.transport(), TransportName::Push);
}

#[test]
fn a_proxy_that_blocks_the_socket_is_asked_ever_more_rarely() {
    let mut machine = pushed();
    let (mut polls, mut tries, mut lists) = (0, 0, 0);
    let mut actions = machine.on(failed(unreachable()));
    for _ in 0..400 {
        actions = match actions.as_slice() {
            [Action::Listen { .. }] => {
                tries += 1;
                machine.on(failed(Failure::Server { status: 404, message: "no".into() }))
            }
            [Action::Pull { .. }] => {
                polls += 1;
                machine.on(fetched("c9", 1, false, true))
            }
            [Action::Apply] => machine.on(applied(true)),
            [Action::FetchCollections] => {
                lists += 1;
                machine.on(Event::Collections(Ok(())))
            }
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(lists, 1, "only after the socket that had worked");
    assert!(tries >= 3, "{tries} tries");
    assert!(polls > 4 * tries, "{polls} polls, {tries} tries");
    assert!(machine.online() && machine.error().is_none());
}

#[test]
fn what_the_server_says_on_the_socket_counts() {
    let machine = || pushed();
    let refused = Failure::Unauthorized("expired".into());
    assert_eq!(machine().on(failed(refused)), [Action::WaitForToken]);
    let resync = Failure::Resync(ResyncReason::CursorTooOld);
    assert_eq!(machine().on(failed(resync)), [Action::BeginFill]);
    let mut draining = machine();
    assert!(armed(&draining.on(failed(busy(3)))) >= Duration::from_secs(3));
    assert_eq!(draining.on(Event::Timer), [pull("c1", NONE)]);
}

#[test]
fn after_a_sleep_the_socket_is_hung_up_and_a_pull_comes_first() {
    let mut machine = pushed();
    assert_eq!(machine.on(Event::Woke), [Action::CancelPull, pull("c1", NONE)]);
    machine.on(fetched("c2", 1, false, true));
    assert_eq!(machine.on(applied(true)), [listen("c2")]);
    let mut machine = pushed();
    assert_eq!(machine.on(Event::PullNow), [pull("c1", NONE)], "the socket stays open");
}

#[test]
fn a_machine_that_may_only_push_tells_why_it_does_not() {
    let options = Options { push_only: true, ..pushing_options() };
    let mut machine = Machine::new(options);
    machine.on(Event::Opened(resume("c0")));
    machine.on(Event::Collections(Ok(())));
    machine.on(fetched("c1", 1, false, true));
    assert_eq!(machine.on(applied(true)), [listen("c1")]);
    armed(&machine.on(failed(unreachable())));
    assert_eq!(machine.state(), State::Offline);
    assert_eq!(machine.on(Event::Timer), [pull("c1", NONE)]);
    machine.on(fetched("c2", 1, false, true));
    assert_eq!(machine.on(applied(true)), [listen("c2")]);
}

fn several() -> Options {
    Options { servers: 3, ..options() }
}

#[test]
fn a_server_that_fails_costs_no_delay_while_there_is_another() {
    for failure in [unreachable(), busy(60), Failure::Garbage("a portal".into())] {
        let mut machine = live(several());
        let next = [Action::UseServer(1), pull("c1", NONE)];
        assert_eq!(machine.on(failed(failure.clone())), next, "{failure}");
        machine.on(fetched("c2", 1, false, true));
        machine.on(applied(true));
        assert_eq!(machine.state(), State::Live);
    }
}

#[test]
fn where_all_servers_fail_the_first_to_be_ready_is_asked() {
    let mut machine = live(several());
    machine.on(failed(busy(60)));
    assert_eq!(machine.on(failed(busy(5))), [Action::UseServer(2), pull("c1", NONE)]);
    let actions = machine.on(failed(busy(20)));
    assert_eq!(actions[0], Action::UseServer(1), "its delay ends first");
    let delay = armed(&actions);
    assert!(delay >= Duration::from_secs(5) && delay <= Duration::from_secs(6), "{delay:?}");
    machine.passed(delay);
    assert_eq!(machine.on(Event::Timer), [pull("c1", NONE)]);
    // It fails too; nobody else is ready before its own time.
    let delay = armed(&machine.on(failed(busy(1))));
    assert!(delay >= Duration::from_secs(1) && delay <= Duration::from_secs(2), "{delay:?}");
}

#[test]
fn every_server_is_asked_for_a_cursor_before_all_is_copied_anew() {
    let mut machine = live(several());
    let old = || failed(Failure::Resync(ResyncReason::CursorTooOld));
    assert_eq!(machine.on(old()), [Action::UseServer(1), pull("c1", NONE)]);
    assert_eq!(machine.on(old()), [Action::UseServer(2), pull("c1", NONE)]);
    assert_eq!(machine.on(old()), [Action::BeginFill]);
    let mut machine = live(several());
    machine.on(old());
    machine.on(fetched("c2", 1, false, true));
    machine.on(applied(true));
    assert_eq!(machine.state(), State::Live, "the second could go on");
}

/// One of several servers' clients, in the middle of a catch-up from the first of them.
fn catching_up() -> Machine {
    let mut machine = live(several());
    machine.on(fetched("c2", 5, true, false));
    machine.on(applied(false));
    machine
}

#[test]
fn what_is_not_complete_waits_for_its_own_server_a_while() {
    for failure in [unreachable, || busy(20)] {
        let mut machine = catching_up();
        for _ in 0..PARTIAL_PATIENCE_MAX {
            armed(&machine.on(failed(failure())));
            assert_eq!(machine.on(Event::Timer), [pull("c2", NONE)]);
        }
        gone_elsewhere(machine, failure());
    }
    // One that is busy for an hour is not waited for.
    gone_elsewhere(catching_up(), busy(3_600));
}

#[test]
fn an_app_that_asks_for_pulls_does_not_keep_what_is_not_complete_at_a_server_that_is_gone() {
    let mut machine = catching_up();
    for _ in 0..PARTIAL_PATIENCE_MAX {
        armed(&machine.on(failed(unreachable())));
        assert_eq!(machine.on(Event::PullNow), [pull("c2", NONE)]);
    }
    gone_elsewhere(machine, unreachable());
}

#[test]
fn a_busy_server_is_given_a_second_at_least_and_one_that_is_gone_is_not_busy_any_more() {
    let mut machine = live(options());
    assert!(armed(&machine.on(failed(busy(0)))) >= Duration::from_secs(1));
    assert_eq!(machine.on(Event::PullNow), [], "it has said when");
    assert_eq!(machine.on(Event::Timer), [pull("c1", NONE)]);
    armed(&machine.on(failed(unreachable())));
    assert_eq!(machine.state(), State::Offline);
    assert_eq!(machine.on(Event::PullNow), [pull("c1", NONE)]);
}

#[test]
fn what_a_busy_server_named_holds_for_no_later_pause() {
    let mut machine = live(options());
    machine.on(failed(busy(30)));
    machine.on(Event::Timer);
    for _ in 0..2 {
        assert_eq!(
            machine.on(failed(Failure::Resync(ResyncReason::CursorTooOld))),
            [Action::BeginFill]
        );
        if machine.on(Event::Opened(filling())) == [Action::FetchCollections] {
            assert_eq!(machine.on(Event::Collections(Ok(()))), [pull("", NONE)]);
        }
    }
    assert_eq!(machine.on(Event::PullNow), [Action::FetchCollections], "the pause was its own");
}

fn gone_elsewhere(mut machine: Machine, failure: Failure) {
    assert_eq!(machine.on(failed(failure)), [Action::UseServer(1), pull("c2", NONE)]);
    let foreign = failed(Failure::Resync(ResyncReason::ForeignLog));
    assert_eq!(machine.on(foreign), [Action::DropPartial], "back to the last complete one");
    machine.on(Event::Opened(resume("c1")));
    assert_eq!(machine.on(Event::Collections(Ok(()))), [pull("c1", NONE)]);
}

#[test]
fn a_page_that_came_before_is_not_followed_back() {
    let mut machine = live(options());
    machine.on(fetched("c2", 1, false, true));
    machine.on(applied(true));
    for cursor in ["c0", "c1"] {
        let actions = machine.on(fetched(cursor, 1, false, true));
        assert!(!actions.contains(&Action::Apply), "{actions:?}");
        assert_eq!(machine.on(Event::Timer), [pull("c2", NONE)]);
    }
    assert_eq!(
        machine.on(fetched("c2", 0, false, true)),
        [Action::Apply],
        "nothing new is no such page"
    );
}

#[test]
fn a_token_is_renewed_on_the_open_socket() {
    let mut machine = pushed();
    assert!(machine.renews());
    assert_eq!(machine.on(Event::TokenRenewed), [listen("c1")]);
    assert_eq!(machine.transport(), TransportName::Push);
    // What the token may see may have changed; the socket stays open over that question.
    machine.on(fetched("c2", 1, false, true));
    assert_eq!(machine.on(applied(true)), [Action::FetchCollections]);
    assert_eq!(machine.on(Event::Collections(Ok(()))), [listen("c2")]);
    assert!(!live(options()).renews());
}

#[test]
fn a_rebuild_copies_anew_beside_the_old_data() {
    let mut machine = pushed();
    assert_eq!(machine.on(Event::Rebuild), [Action::CancelPull, Action::BeginFill]);
    assert_eq!(machine.on(Event::Opened(filling())), [Action::FetchCollections]);
    assert_eq!(machine.state(), State::Resyncing);
    assert_eq!(machine.on(Event::Collections(Ok(()))), [pull("", NONE)]);
}

#[test]
fn a_list_of_collections_that_comes_after_a_rebuild_has_begun_is_none_of_its_own() {
    let mut machine = live(options());
    machine.on(Event::CollectionsDue);
    machine.on(fetched("c2", 1, false, true));
    assert_eq!(machine.on(applied(true)), [Action::FetchCollections]);
    assert_eq!(machine.on(Event::Rebuild), [Action::BeginFill]);
    assert_eq!(
        machine.on(Event::Collections(Ok(()))),
        [],
        "what is pulled now follows the old cursor"
    );
    assert_eq!(machine.on(Event::Opened(filling())), [Action::FetchCollections]);
    assert_eq!(machine.on(Event::Collections(Ok(()))), [pull("", NONE)]);
    assert_eq!(machine.on(Event::Collections(Ok(()))), [], "once");
}

#[test]
fn a_socket_that_is_cut_after_every_welcome_is_tried_ever_more_rarely() {
    let mut machine = pushed();
    let mut longest = NONE;
    for round in 0..12 {
        assert_eq!(machine.on(failed(unreachable())), [pull("c1", NONE)]);
        longest = longest.max(machine.push_after);
        machine.push_after = NONE;
        assert_eq!(std::mem::take(&mut machine.lost), round == 0, "only one that had worked");
        machine.on(fetched("c1", 0, false, true));
        assert_eq!(machine.on(applied(true)), [listen("c1")]);
        assert_eq!(machine.on(Event::Listening), [listen("c1")]);
    }
    assert!(longest >= PUSH.1 / 2, "{longest:?}");
    machine.on(fetched("c1", 0, false, true));
    machine.on(applied(true));
    machine.on(failed(unreachable()));
    assert!(machine.push_after <= PUSH.0, "a keepalive has come through");
}

#[test]
fn a_machine_that_may_only_push_tries_a_blocked_socket_ever_more_rarely() {
    let mut machine = Machine::new(Options { push_only: true, ..pushing_options() });
    machine.on(Event::Opened(resume("c0")));
    machine.on(Event::Collections(Ok(())));
    let mut delay = NONE;
    for _ in 0..12 {
        machine.on(fetched("c1", 0, false, true));
        assert_eq!(machine.on(applied(true)), [listen("c1")]);
        delay = armed(&machine.on(failed(unreachable())));
        machine.passed(delay);
        assert_eq!(machine.on(Event::Timer), [pull("c1", NONE)]);
    }
    assert!(delay >= PUSH.1 / 2, "{delay:?}");
}

#[test]
fn a_server_that_is_started_anew_is_waited_for_before_all_is_copied_from_a_younger_one() {
    let old = || failed(Failure::Resync(ResyncReason::CursorTooOld));
    let mut machine = live(Options { servers: 2, ..options() });
    assert_eq!(machine.on(failed(busy(2))), [Action::UseServer(1), pull("c1", NONE)]);
    let actions = machine.on(old());
    assert_eq!(actions[0], Action::UseServer(0), "it has not been asked");
    machine.passed(armed(&actions));
    assert_eq!(machine.on(Event::Timer), [pull("c1", NONE)]);
    machine.on(fetched("c2", 1, false, true));
    machine.on(applied(true));
    assert_eq!(machine.state(), State::Live);
    // One that is not back after some tries is not waited for any more.
    let mut machine = live(Options { servers: 2, ..options() });
    for _ in 0..PARTIAL_PATIENCE_MAX {
        assert_eq!(machine.on(failed(unreachable())), [Action::UseServer(1), pull("c1", NONE)]);
        let actions = machine.on(old());
        machine.passed(armed(&actions));
        assert_eq!(machine.on(Event::Timer), [pull("c1", NONE)]);
    }
    machine.on(failed(unreachable()));
    assert_eq!(machine.on(old()), [Action::BeginFill]);
}
