//! `up`: the whole stack on this machine from nothing, with a view of it working.
//!
//! Every part is a process of its own, as in real life: mongod, the server, a client. The writes come
//! from here, through the ordinary driver; what is shown as arrived was read from the replica's file,
//! as any program may.

mod files;
mod hints;
mod stack;
mod tally;
mod view;
mod watch;
mod writes;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use crate::signals::Stop;
use files::Files;
use stack::Stack;
use tally::Tally;
use view::View;

/// How often the terminal is drawn and the processes are looked after.
const TICK: Duration = Duration::from_millis(250);

/// What `up` is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// A replica set that runs already; `None`: one is started.
    pub mongodb_uri: Option<String>,
    /// The database, seeded where it is empty.
    pub database: String,
    /// Where everything is kept.
    pub dir: PathBuf,
    /// The server's port; `None`: 8787, or a free one.
    pub port: Option<u16>,
    /// Writes a second, 0 for none.
    pub rate: f64,
    /// How much sample data.
    pub scale: f64,
    /// Stop by itself after so long; `None`: when told.
    pub run_for: Option<Duration>,
}

/// Starts everything, shows it, and ends everything when told to.
///
/// # Errors
/// When a part can't be started or ends by itself; everything else is ended then, too.
pub async fn run(options: Options) -> Result<()> {
    let mut stop = Stop::listen()?;
    let files = Files::prepare(&options.dir)?;
    let started = tokio::select! {
        biased;
        () = stop.asked() => None,
        stack = Stack::start(&options, &files) => Some(stack?),
    };
    let Some(mut stack) = started else {
        println!("\nstopped before everything was up; nothing is left running");
        return Ok(());
    };
    let shown = tokio::select! {
        biased;
        () = stop.asked() => Ok(()),
        shown = show(&options, &files, &mut stack) => shown,
    };
    view::farewell("stopping …");
    // Asked again, everything that is left is killed as it is dropped.
    let stopped = tokio::select! {
        biased;
        () = stop.asked() => Ok(()),
        stopped = stack.stop() => stopped,
    };
    if stopped.is_ok() {
        let left = "stopped; nothing is left running. Everything is kept in";
        view::farewell(&format!("{left} {}", files.dir().display()));
    }
    shown.and(stopped)
}

/// Writes, watches and draws until the time is over or a part fails.
async fn show(options: &Options, files: &Files, stack: &mut Stack) -> Result<()> {
    hints::print(&stack.uri, &options.database, &stack.server_url, files);
    let mut view = View::new();
    let mut tally = Tally::new(options.rate);
    let mut watch = watch::start(files.replica())?;
    let source = stack.database(&options.database);
    let _writes = writes::start(stack.client(), &options.database, options.rate, watch.expect())?;
    let ends = options.run_for.map(|run_for| Instant::now() + run_for);
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            news = watch.news() => match news {
                Some(news) => {
                    if let Some(line) = tally.take(news) {
                        view.line(&line)?;
                    }
                }
                None => anyhow::bail!("the replica can't be read any more"),
            },
            _ = ticks.tick() => {
                stack.must_run()?;
                tally.count_source(&source).await;
                view.draw(&mut tally)?;
                if ends.is_some_and(|ends| Instant::now() >= ends) {
                    view.summary(&mut tally)?;
                    return tally.verdict();
                }
            }
        }
    }
}
