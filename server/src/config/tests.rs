//! What the configuration's check finds, and what it says.

use super::*;

const GOOD: &str = r#"
[source]
uri = "mongodb://127.0.0.1:27017/?replicaSet=rs0"
database = "invoify"
[auth]
hs256_secret = "0123456789abcdef0123456789abcdef"
[access]
grants = ["everyone", "user:{sub}"]
[[collections]]
name = "invoices"
channels = ["user:{userId}"]
exclude = ["notes", "a.b"]
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, &Flags::default())
}

/// `GOOD` with `from` replaced must be refused, and the message must hold every text of `says`.
fn refused(from: &str, to: &str, says: &[&str]) {
    assert!(GOOD.contains(from), "{from}");
    let message = parse(&GOOD.replacen(from, to, 1)).expect_err(to).to_string();
    for text in says {
        assert!(message.contains(text), "{to}: {message}");
    }
    assert!(!message.contains("0123456789abcdef"), "the secret is shown: {message}");
}

#[test]
fn a_good_file_is_taken_and_the_rest_is_default() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:8787");
    assert_eq!(config.http.admin_listen.to_string(), "127.0.0.1:8788");
    assert_eq!((config.http.requests_per_second, config.http.requests_burst), (100, 1_000));
    assert_eq!(config.log.dir, Path::new("tidewire-data"));
    assert_eq!(config.log.retention, Duration::from_secs(7 * 86_400));
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn a_flag_wins_over_the_file() {
    let flags = Flags {
        database: Some("other".into()),
        listen: Some("0.0.0.0:1".into()),
        jwt_secret: Some("f".repeat(32)),
        ..Flags::default()
    };
    let config = Config::parse(GOOD, &flags).unwrap();
    assert_eq!(config.source.database, "other");
    assert_eq!(config.http.listen.to_string(), "0.0.0.0:1");
    assert_eq!(config.auth.hs256_secret.expose(), "f".repeat(32).as_bytes());
}

#[test]
fn a_key_that_nobody_knows_is_refused() {
    refused("exclude =", "exlude =", &["exlude", "line 12"]);
    refused("[source]", "[sauce]\n[source]", &["sauce"]);
    refused("database =", "databse = 1\ndatabase =", &["databse"]);
}

#[test]
fn a_syntax_error_does_not_show_the_line_it_is_in() {
    refused("hs256_secret = \"", "hs256_secret = ", &["line 6"]);
}

#[test]
fn a_weak_or_missing_secret_is_refused() {
    refused("0123456789abcdef0123456789abcdef", "short", &["auth.hs256_secret", "5 bytes", "32"]);
    refused(
        "hs256_secret = \"0123456789abcdef0123456789abcdef\"",
        "",
        &["auth.hs256_secret", "missing"],
    );
    refused(
        "[auth]",
        "[auth]\nhs256_secret_file = \"x\"",
        &["hs256_secret_file", "one of the two"],
    );
}

#[test]
fn a_secret_file_is_read_without_its_line_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    std::fs::write(&path, format!("{}\n", "s".repeat(32))).unwrap();
    let line = "hs256_secret = \"0123456789abcdef0123456789abcdef\"";
    let text = GOOD.replace(line, &format!("hs256_secret_file = {path:?}"));
    assert_eq!(parse(&text).unwrap().auth.hs256_secret.expose(), "s".repeat(32).as_bytes());
    std::fs::write(&path, "short").unwrap();
    assert!(parse(&text).unwrap_err().to_string().contains("5 bytes"));
    std::fs::remove_file(&path).unwrap();
    assert!(parse(&text).unwrap_err().to_string().contains("cannot read hs256_secret_file"));
}

#[test]
fn keys_of_later_versions_are_refused_and_not_ignored() {
    for key in ["jwks_url", "jwks_file", "public_key_file"] {
        refused("[auth]", &format!("[auth]\n{key} = \"x\""), &[key, "not supported yet"]);
    }
}

#[test]
fn names_that_cannot_be_served_are_refused_with_the_reason() {
    for (name, reason) in [
        ("", "empty"),
        ("system.users", "system collections"),
        ("tmp.agg_out.1", "passing"),
        ("_tidewire_x", "_tidewire"),
        ("_Tidewire", "_tidewire"),
        ("sqlite_master", "sqlite_"),
        ("SQLite_x", "sqlite_"),
        ("a$b", "$"),
        ("a,b", "comma"),
        ("a\\u0000b", "control"),
        ("a\\u001b[31m", "control"),
    ] {
        refused("\"invoices\"", &format!("\"{name}\""), &["collections", reason]);
    }
    refused("\"invoices\"", &format!("\"{}\"", "x".repeat(250)), &["too long"]);
    let twice = "[[collections]]\nname = \"Invoices\"\n[[collections]]";
    refused("[[collections]]", twice, &["\"Invoices\"", "\"invoices\"", "case"]);
    let twice = "[[collections]]\nname = \"invoices\"\n[[collections]]";
    refused("[[collections]]", twice, &["named twice"]);
}

#[test]
fn names_that_sql_dislikes_are_taken() {
    for name in ["select", "a b", "a\\\"b", "a'b", "a;--", "Größe", "1", "a.b"] {
        assert!(parse(&GOOD.replace("\"invoices\"", &format!("\"{name}\""))).is_ok(), "{name}");
    }
}

#[test]
fn what_no_token_could_see_is_said() {
    let config = parse(&GOOD.replace("channels = [\"user:{userId}\"]", "")).unwrap();
    assert!(config.warnings[0].contains("collections.invoices.channels"), "{:?}", config.warnings);
    let config = parse(&GOOD.replace("[\"everyone\", \"user:{sub}\"]", "[]")).unwrap();
    assert!(config.warnings[0].contains("access.grants"), "{:?}", config.warnings);
    let config = parse(&GOOD.replace("\"user:{userId}\"", "\"{userId}\"")).unwrap();
    assert!(config.warnings[0].contains("any channel"), "{:?}", config.warnings);
}

#[test]
fn values_that_cannot_be_used_are_refused_with_their_key() {
    refused("mongodb://", "postgres://", &["source.uri", "mongodb://"]);
    refused("\"invoify\"", "\"admin\"", &["source.database", "MongoDB's own"]);
    refused("\"invoify\"", "\"a/b\"", &["source.database", "'/'"]);
    refused("[auth]", "[log]\nretention = \"7 days\"\n[auth]", &["log.retention", "\"7d\""]);
    refused("[auth]", "[log]\nretention = \"0s\"\n[auth]", &["log.retention", "at least 1s"]);
    refused("[auth]", "[http]\nlisten = \"8787\"\n[auth]", &["http.listen", "127.0.0.1:8787"]);
    refused("[auth]", "[http]\nadmin_listen = \"127.0.0.1:8787\"\n[auth]", &["http.admin_listen"]);
    refused("[auth]", "[http]\nrequests_burst = 0\n[auth]", &["http.requests_burst", "least 1"]);
    refused("[auth]", "[http]\nrequests_per_second = -1\n[auth]", &["line ", "expected u32"]);
    refused("[auth]", "[http]\nallowed_origins = [\"*\"]\n[auth]", &["http.allowed_origins"]);
    refused("user:{userId}", "user:{userId", &["collections.invoices.channels", "{ without"]);
    refused("user:{sub}", "user:{}", &["access.grants"]);
    refused("\"notes\"", "\"_id\"", &["_id can't be excluded"]);
    refused("\"notes\"", "\"a..b\"", &["exclude", "not a path"]);
}

#[test]
fn all_mistakes_are_told_at_once_and_nothing_named_is_one() {
    let message = parse("").unwrap_err().to_string();
    for key in ["source.uri", "source.database", "auth.hs256_secret", "collections"] {
        assert!(message.contains(key), "{message}");
    }
}

#[test]
fn debug_output_shows_no_secret() {
    let text = GOOD.replace("mongodb://", "mongodb://user:hunter2@");
    let shown = format!("{:?}", parse(&text).unwrap());
    assert!(!shown.contains("hunter2") && !shown.contains("0123456789abcdef"), "{shown}");
}
