//! Waits until the replica holds a write that the backend has made.
//!
//! A backend that writes to MongoDB in a session knows the write's time: `session.operationTime`, as
//! `seconds.increment`. It hands that to the app, and the app waits for it before it reads.
//!
//! `cargo run -p tidewire --example own_write -- http://127.0.0.1:8787 token replica.db 1764000000.3`

use std::time::Duration;

use tidewire::{Position, Replica, SyncClient};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "give a server, a token file, a replica and an operation time, like 1764000000.3";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, token_file, replica, time] = arguments.try_into().map_err(|_| usage)?;
    let (seconds, increment) = time.split_once('.').ok_or(usage)?;
    let cluster_time = (seconds.parse::<u64>()? << 32) | u64::from(increment.parse::<u32>()?);

    let client = SyncClient::builder(server).token_file(token_file).replica(&replica).start()?;
    let written = client.wait_for(Position::new(cluster_time, 0));
    tokio::time::timeout(Duration::from_secs(30), written).await??;
    println!("{} rows, the write among them", Replica::open(&replica)?.row_count()?);
    Ok(client.stop().await?)
}
