//! Keeps a replica and prints how many invoices there are of each status, whenever that changes.
//!
//! `cargo run -p tidewire --example live_query -- http://127.0.0.1:8787 token replica.db`

use tidewire::SyncClient;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [server, token_file, replica] = std::env::args()
        .skip(1)
        .collect::<Vec<_>>()
        .try_into()
        .map_err(|_| "give a server, a file with a token and a path for the replica")?;
    let client = SyncClient::builder(server).token_file(token_file).replica(replica).start()?;

    let mut changes = client.changes();
    tokio::spawn(async move {
        while let Some(changed) = changes.next().await {
            let names = changed.collections.iter().map(|rows| rows.collection.as_str());
            let names: Vec<_> = names.collect();
            println!(
                "a commit changed {}",
                if changed.everything { "anything".into() } else { names.join(", ") }
            );
        }
    });

    let sql = "SELECT status, count(*) FROM invoices GROUP BY status ORDER BY status";
    let mut invoices = client.watch(sql);
    while let Some(result) = invoices.next().await {
        match result {
            Ok(rows) => println!("{:?}", rows.rows),
            Err(error) => eprintln!("{error}"),
        }
    }
    // The queries end with the client: here is why it ended.
    Ok(client.ended().await?)
}
