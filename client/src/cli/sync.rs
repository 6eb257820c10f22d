//! `tidewire sync` and `tidewire rebuild`: a client until it is told to stop, and what it says meanwhile.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use tidewire::{ClientBuilder, State, Status, SyncClient, TransportChoice};
use tokio::sync::watch;

use super::show::{plain, print_status};
use super::{RebuildArgs, SourceArgs, SyncArgs, Transport};

/// Work that takes longer than this shows how far it is.
const PROGRESS_AFTER: Duration = Duration::from_secs(2);
/// The time between two lines of progress where there is no terminal.
const PROGRESS_LINE_EVERY: Duration = Duration::from_secs(5);

pub(super) fn sync(args: &SyncArgs) -> Result<ExitCode> {
    let choice = match args.transport {
        Transport::Auto => TransportChoice::Auto,
        Transport::Poll => TransportChoice::Poll,
        Transport::Push => TransportChoice::Push,
    };
    let builder = builder(&args.source).poll_interval(args.poll_interval).transport(choice);
    run(&builder, args.once, args.source.json)
}

pub(super) fn rebuild(args: &RebuildArgs) -> Result<ExitCode> {
    run(&builder(&args.source).rebuild(), true, args.source.json)
}

fn builder(args: &SourceArgs) -> ClientBuilder {
    SyncClient::builder(&args.server).replica(&args.db.db).token_file(&args.token_file)
}

fn run(builder: &ClientBuilder, once: bool, json: bool) -> Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let builder = builder.clone();
        let client = if once { builder.start_once()? } else { builder.start()? };
        let status = client.status();
        let narrator = tokio::spawn(narrate(status.clone()));
        let stopped = stop_signal();
        tokio::pin!(stopped);
        let mut watching = status.clone();
        let interrupted = tokio::select! {
            // The watch closes when the client has ended.
            () = async { while watching.changed().await.is_ok() {} } => false,
            () = &mut stopped => true,
        };
        let ended = if interrupted { client.stop().await } else { client.ended().await };
        narrator.await.ok();
        ended?;
        if interrupted && once {
            anyhow::bail!("interrupted; what was applied stays, the next run goes on from there");
        }
        let status = status.borrow().clone();
        report(&status, json)?;
        Ok(ExitCode::SUCCESS)
    })
}

fn report(status: &Status, json: bool) -> Result<()> {
    if json {
        return print_status(status, true);
    }
    let applied = status.last_sync.as_ref().map_or(0, |last| last.applied);
    let position = status.position.as_deref().unwrap_or("-");
    println!("stopped at position {position}; the last sync brought {applied} changes");
    Ok(())
}

/// Completes at SIGINT or SIGTERM.
async fn stop_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut term) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = term.recv() => {}
            }
            return;
        }
    }
    tokio::signal::ctrl_c().await.ok();
}

/// Says on standard error what state the client is in, and how far a long copy has come.
async fn narrate(mut status: watch::Receiver<Status>) {
    let mut said = (State::Starting, None::<String>);
    let mut progress = Progress::new();
    loop {
        let now = status.borrow_and_update().clone();
        progress.show(&now);
        let next = (now.state, now.error.clone());
        if next != said {
            let error = now.error.as_deref().map(|error| format!(": {}", plain(error)));
            progress.line(&format!("{}{}", now.state.name(), error.unwrap_or_default()));
            said = next;
        }
        if status.changed().await.is_err() {
            progress.end();
            return;
        }
    }
}

struct Progress {
    since: Option<Instant>,
    bar: Option<ProgressBar>,
    last_line: Instant,
    terminal: bool,
}

impl Progress {
    fn new() -> Self {
        let terminal = console::user_attended_stderr();
        Self { since: None, bar: None, last_line: Instant::now(), terminal }
    }

    fn show(&mut self, status: &Status) {
        let Some(applying) = status.applying else {
            self.end();
            return;
        };
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() < PROGRESS_AFTER {
            return;
        }
        if self.terminal {
            let bar = self.bar.get_or_insert_with(new_bar);
            bar.set_position(applying);
        } else if self.last_line.elapsed() >= PROGRESS_LINE_EVERY {
            eprintln!("{applying} changes copied");
            self.last_line = Instant::now();
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    fn end(&mut self) {
        self.since = None;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    // A template that does not parse would only lose its shape.
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {human_pos} changes copied, {per_sec}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
