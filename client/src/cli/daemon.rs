//! `tidewire daemon`: a client that other programs of the same user talk to.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tidewire::daemon::{Endpoint, serve, serve_stdio};
use tidewire::{ClientBuilder, SyncClient};

use super::DaemonArgs;
use super::sync::{follow, runtime, stop_signal};

pub(super) fn daemon(args: &DaemonArgs) -> Result<ExitCode> {
    let mut builder = follow(&args.servers, &args.db, &args.how);
    builder = match &args.token_file {
        Some(file) => builder.token_file(file),
        None => builder.token_later(),
    };
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        if args.stdio {
            over_stdio(builder).await
        } else {
            let path = args.socket.clone().unwrap_or_else(|| Endpoint::beside(&args.db.db));
            over_socket(builder, path).await
        }
    });
    // A read of standard input can't be taken back; it ends with the process.
    runtime.shutdown_background();
    done.map(|()| ExitCode::SUCCESS)
}

async fn over_stdio(builder: ClientBuilder) -> Result<()> {
    let client = builder.start()?;
    let served = tokio::select! {
        served = serve_stdio(&client) => served,
        () = ends(&client) => Ok(()),
        () = stop_signal() => Ok(()),
    };
    client.stop().await?;
    Ok(served?)
}

async fn over_socket(builder: ClientBuilder, path: PathBuf) -> Result<()> {
    let client = Arc::new(builder.start()?);
    let endpoint = Endpoint::bind(&path)?;
    println!("listening at {}", endpoint.address());
    let watched = Arc::clone(&client);
    let stop = async move {
        tokio::select! {
            () = ends(&watched) => {}
            () = stop_signal() => {}
        }
    };
    let served = serve(Arc::clone(&client), endpoint, stop).await;
    // The sessions have ended, and their hold of the client with them.
    let client = Arc::into_inner(client).context("a session has not ended")?;
    client.stop().await?;
    Ok(served?)
}

/// Completes when the client has ended by itself.
async fn ends(client: &SyncClient) {
    let mut status = client.status();
    while status.changed().await.is_ok() {}
}
