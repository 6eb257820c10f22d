//! `tidewire verify`: compares a replica with its server, mends it, and says what differed.

use std::process::ExitCode;

use anyhow::Result;
use tidewire::{State, SyncClient, Verified};

use super::SourceArgs;
use super::narrate;
use super::sync::{client, runtime, stop_signal};

pub(super) fn verify(args: &SourceArgs) -> Result<ExitCode> {
    let builder = client(&args.servers, &args.db).token_file(&args.token_file);
    let found = runtime()?.block_on(async {
        // The refusals of a single run, and its exit codes; then one that goes on while it is compared.
        builder.clone().sync_once().await?;
        let client = builder.start()?;
        let narrator = tokio::spawn(narrate::for_people(client.status(), args.db.db.clone()));
        let found = tokio::select! {
            found = compare(&client) => Some(found),
            () = stop_signal() => None,
        };
        client.stop().await?;
        narrator.await.ok();
        found.unwrap_or_else(|| anyhow::bail!("interrupted; nothing was mended"))
    })?;
    if args.json {
        println!("{}", serde_json::to_string(&found)?);
    } else {
        let Verified { collections, differences, mended, .. } = &found;
        println!(
            "{collections} collections compared: {differences} rows differed, {mended} were mended"
        );
    }
    Ok(if found.differences == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn compare(client: &SyncClient) -> Result<Verified> {
    let mut status = client.status();
    status.wait_for(|status| matches!(status.state, State::Live | State::Polling)).await?;
    eprintln!("comparing with the server");
    Ok(client.verify().await?)
}
