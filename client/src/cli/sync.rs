//! `tidewire sync` and `tidewire rebuild`: a client until it is caught up or told to stop.

use std::process::ExitCode;

use anyhow::Result;
use tidewire::{ClientBuilder, Status, SyncClient, TransportChoice};
use tokio::runtime::Runtime;

use super::narrate;
use super::show::print_status;
use super::{
    DbArg, HowArgs, OnNeedsAuth, RebuildArgs, ServersArg, SourceArgs, SyncArgs, Transport,
};

pub(super) fn sync(args: &SyncArgs) -> Result<ExitCode> {
    let source = &args.source;
    let builder = follow(&source.servers, &source.db, &args.how).token_file(&source.token_file);
    run(&builder, args.once, source)
}

pub(super) fn rebuild(args: &RebuildArgs) -> Result<ExitCode> {
    let source = &args.source;
    let builder = client(&source.servers, &source.db).token_file(&source.token_file);
    run(&builder.rebuild(), true, source)
}

/// A client that follows in the way that was asked for; it lacks its token.
pub(super) fn follow(servers: &ServersArg, db: &DbArg, how: &HowArgs) -> ClientBuilder {
    let choice = match how.transport {
        Transport::Auto => TransportChoice::Auto,
        Transport::Poll => TransportChoice::Poll,
        Transport::Push => TransportChoice::Push,
    };
    let on_needs_auth = match how.on_needs_auth {
        OnNeedsAuth::Keep => tidewire::OnNeedsAuth::Keep,
        OnNeedsAuth::Wipe => tidewire::OnNeedsAuth::Wipe,
    };
    let client = client(servers, db).poll_interval(how.poll_interval).transport(choice);
    client.on_needs_auth(on_needs_auth)
}

pub(super) fn client(servers: &ServersArg, db: &DbArg) -> ClientBuilder {
    SyncClient::builder_of(&servers.server).replica(&db.db)
}

/// The runtime of a program that does little but wait.
pub(super) fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

fn run(builder: &ClientBuilder, once: bool, source: &SourceArgs) -> Result<ExitCode> {
    let json = source.json;
    runtime()?.block_on(async {
        let builder = builder.clone();
        let client = if once { builder.start_once()? } else { builder.start()? };
        let status = client.status();
        let narrator = match json {
            true => tokio::spawn(narrate::json_lines(status.clone())),
            false => tokio::spawn(narrate::for_people(status.clone(), source.db.db.clone())),
        };
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
pub(super) async fn stop_signal() {
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
