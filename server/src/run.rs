//! Builds the parts and owns the tasks: configuration → log → capture → serve, and the way back.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::access::{Grants, RuleSet, TokenVerifier};
use crate::capture::{self, CaptureError, CaptureParts, CheckError, check_source, source_identity};
use crate::config::{Config, ConfigError, LogConfig};
use crate::log::{self, LogError, LogOptions, Reader, Writer};
use crate::metrics::Metrics;
use crate::scrub::{self, Memory, Scrub};
use crate::serve::{self, Parts, Rate};
use crate::status::{self, CopyProgress, StatusReceiver, StatusSender};

/// All that was begun must be finished within this time after a signal; the contract says 10 s.
const STOP_MAX: Duration = Duration::from_secs(9);

/// Why the server ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The source can't be followed.
    #[error(transparent)]
    Source(#[from] CheckError),
    /// The log can't be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An address can't be listened on.
    #[error("cannot listen on {address}; stop what does or choose another {flag}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The flag that chooses it.
        flag: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Following the source needs a person.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A task of ours ended that never should.
    #[error("{0} ended unexpectedly; this is a mistake in the server, restart it")]
    Task(&'static str),
    /// The system refuses a signal handler.
    #[error("cannot handle signals")]
    Signals(#[source] std::io::Error),
}

impl RunError {
    /// 1 failed, 2 bad configuration, 3 access refused, 4 unreachable.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Source(error) | Self::Capture(CaptureError::Source(error)) => error.exit_code(),
            _ => 1,
        }
    }
}

/// Runs the server until SIGTERM or SIGINT, then drains it.
///
/// # Errors
/// [`RunError`], when it can't start or can't go on without a person.
pub async fn run(config: Config) -> Result<(), RunError> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let stop = stop_on_signals()?;
    raise_open_files();
    let rules = compile(RuleSet::compile(&config.collections))?;
    let grants = compile(Grants::compile(&config.access.grants))?;
    let listener = bind(config.http.listen, "--listen").await?;
    let admin_listener = bind(config.http.admin_listen, "--admin-listen").await?;
    let rules = Arc::new(rules);
    let Some(source) = unless_stopped(&stop, identity(&config, &rules)).await.transpose()? else {
        return Ok(());
    };
    let (writer, reader) = open_log(&config.log, source)?;
    let (sender, receiver) = status::channel();
    tell_what_the_log_says(&writer, &rules, &sender);
    let (checks, orders) = capture::checks();
    let (asked, scrubs) = scrub::requests();
    let collections: Vec<_> = rules.iter().map(|rules| rules.name().to_owned()).collect();
    let scrub = Scrub {
        config: config.scrub.clone(),
        memory: Memory::load(&config.log.dir, &collections),
        collections,
        checks,
        status: sender.clone(),
    };
    let capture = tokio::spawn(capture::run(CaptureParts {
        config: config.source.clone(),
        rules: Arc::clone(&rules),
        writer,
        status: sender,
        checks: orders,
        shutdown: stop.clone(),
    }));
    let verifier = TokenVerifier::new(&config.auth, grants);
    let metrics = Arc::new(Metrics::new(config.log.dir.clone()));
    let origins = config.http.allowed_origins.clone();
    let watched = reader.clone();
    let parts = Parts::new(reader, rules, verifier, receiver, metrics, stop.clone(), origins)
        .with_scrubs(asked)
        .with_rate(Rate {
            per_second: config.http.requests_per_second,
            burst: config.http.requests_burst,
        });
    tokio::spawn(scrub.run(scrubs, stop.clone()));
    let served = serve_both(listener, admin_listener, Arc::new(parts));
    let dir = &config.log.dir;
    let damaged = tokio::spawn(async move { watched.damaged().await });
    match until_stopped(capture, served, damaged, stop).await {
        // Whoever starts a server on this log again must not serve from it either.
        Err(RunError::Capture(CaptureError::LogDamaged(reason))) => {
            log::mark_damaged(dir, &reason)?;
            Err(LogError::NeedsRebuild { dir: dir.clone(), reason }.into())
        }
        ended => ended,
    }
}

fn compile<T>(compiled: Result<T, String>) -> Result<T, RunError> {
    compiled.map_err(|reason| ConfigError::Invalid(vec![reason]).into())
}

async fn unless_stopped<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        () = stop.cancelled() => None,
        done = work => Some(done),
    }
}

/// Each push socket is an open file: as many as the system lets this process have.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Cancelled by the first SIGTERM or SIGINT.
fn stop_on_signals() -> Result<CancellationToken, RunError> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: what was begun is finished");
        told.cancel();
    });
    Ok(stop)
}

async fn bind(address: SocketAddr, flag: &'static str) -> Result<TcpListener, RunError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| RunError::Listen { address, flag, source })
}

/// What the log is bound to. A source that can't be reached just now, or refuses us, is no reason not to
/// serve a log that is there, where the URI says which replica set it is of.
async fn identity(config: &Config, rules: &RuleSet) -> Result<String, RunError> {
    let away = match check_source(&config.source, rules).await {
        Ok(checked) => return Ok(checked.identity),
        Err(error @ (CheckError::Unreachable(_) | CheckError::Refused(..))) => error,
        Err(error) => return Err(error.into()),
    };
    match replica_set_in(&config.source.uri) {
        Some(name) if Reader::open(&config.log.dir).is_ok() => {
            tracing::warn!(error = %away, "what the log has is served meanwhile");
            Ok(source_identity(name, &config.source.database))
        }
        _ => Err(away.into()),
    }
}

fn replica_set_in(uri: &str) -> Option<&str> {
    let (_, options) = uri.split_once('?')?;
    let pairs = options.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(name, _)| name.eq_ignore_ascii_case("replicaSet")).map(|(_, set)| set).next()
}

fn open_log(config: &LogConfig, source: String) -> Result<(Writer, Reader), RunError> {
    let options = LogOptions { source, retention: config.retention };
    Ok(Writer::open(&config.dir, &options)?)
}

/// Until capture has something to say: what is not copied yet, by the log, is not to be served.
fn tell_what_the_log_says(writer: &Writer, rules: &RuleSet, sender: &StatusSender) {
    let known = writer.collections();
    let is_copied = |rules: &crate::access::Rules| {
        let id = known.iter().find(|(name, _)| name == rules.name()).map(|(_, id)| *id);
        id.map(|id| writer.copy_state(id))
            .is_some_and(|copy| copy.finished && copy.rules == rules.fingerprint())
    };
    let unfinished = rules.iter().filter(|rules| !is_copied(rules));
    let copies = unfinished.map(|rules| (rules.name().to_owned(), CopyProgress::default()));
    let copies = copies.collect();
    sender.send_modify(|status| {
        status.copies = copies;
        status.high_water = writer.tail().high_water;
        status.in_quarantine = writer.quarantine_len() as u64;
    });
}

/// Both listeners, until the parts drain.
fn serve_both(listener: TcpListener, admin: TcpListener, parts: Arc<Parts>) -> JoinHandle<()> {
    for (listener, who) in [(&listener, "clients"), (&admin, "operators")] {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "listening for {who}");
        }
    }
    let draining = parts.draining.clone();
    let ready = tokio::spawn(tell_when_ready(parts.status.clone(), draining));
    let clients = serve::serve_clients(listener, Arc::clone(&parts));
    let operators = serve::serve_operators(admin, parts);
    tokio::spawn(async move {
        tokio::join!(clients, operators);
        ready.abort();
    })
}

/// One line for whoever waits at a terminal.
async fn tell_when_ready(mut status: StatusReceiver, draining: CancellationToken) {
    let following = status.wait_for(|s| s.phase == status::SourcePhase::Following);
    tokio::select! {
        () = draining.cancelled() => {}
        Ok(_) = following => tracing::info!("the log follows the source; pulls are answered"),
    }
}

/// Waits for the end: a signal, or a part that can't go on. Everything is stopped in either case.
async fn until_stopped(
    mut capture: JoinHandle<Result<(), CaptureError>>,
    mut served: JoinHandle<()>,
    mut damaged: JoinHandle<String>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let (mut ended_early, mut damage) = (None, None);
    let mut stopped_serving = None;
    tokio::select! {
        ended = &mut capture => ended_early = Some(ended),
        ended = &mut served => stopped_serving = Some(ended),
        found = &mut damaged => damage = found.ok(),
        () = stop.cancelled() => {}
    };
    damaged.abort();
    stop.cancel();
    let finished = tokio::time::timeout(STOP_MAX, async {
        let captured = match ended_early {
            Some(ended) => ended,
            None => capture.await,
        };
        let served = match stopped_serving {
            Some(ended) => ended,
            None => served.await,
        };
        (captured, served)
    });
    let finished = finished.await;
    if let Some(reason) = damage {
        return Err(CaptureError::LogDamaged(reason).into());
    }
    match finished {
        Ok((Ok(Ok(())), Ok(()))) => Ok(()),
        Ok((Ok(Err(error)), _)) => Err(error.into()),
        Ok((Err(_), _)) => Err(RunError::Task("capture")),
        Ok((_, Err(_))) => Err(RunError::Task("serving")),
        Err(_) => {
            tracing::warn!(
                "not everything could be finished in time; the log is whole up to its head"
            );
            Ok(())
        }
    }
}

/// What `--check` says of a good configuration.
#[must_use]
pub fn summary(config: &Config) -> String {
    let names: Vec<String> =
        config.collections.iter().map(|c| c.name.escape_debug().to_string()).collect();
    let dir: &PathBuf = &config.log.dir;
    format!(
        "the configuration is good: {} collections of {} ({}), log in {}, clients on {}, operators on {}",
        names.len(),
        config.source.database,
        names.join(", "),
        dir.display(),
        config.http.listen,
        config.http.admin_listen,
    )
}
