//! The file as it is written, and its checking: every mistake is collected, so that one run of
//! `--check` shows them all.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{
    AccessConfig, AuthConfig, CollectionConfig, Config, ConfigError, Flags, HS256_SECRET_BYTES_MIN,
    Hours, HttpConfig, LogConfig, ScrubConfig, Secret, SourceConfig, names, parse_duration,
};
use crate::access::check_template;

const RETENTION_DEFAULT: &str = "7d";
/// Below it a client that is away for a coffee starts again from nothing.
const RETENTION_MIN: Duration = Duration::from_secs(1);
const LISTEN_DEFAULT: &str = "127.0.0.1:8787";
const ADMIN_LISTEN_DEFAULT: &str = "127.0.0.1:8788";
/// Of one subject: its machines and windows, many times over; at once as many as it may have sockets.
const REQUESTS_PER_SECOND_DEFAULT: u32 = 100;
const REQUESTS_BURST_DEFAULT: u32 = 1_000;
const DATA_DIR_DEFAULT: &str = "tidewire-data";
/// Often enough to find what was damaged within the retention.
const SCRUB_EVERY_DEFAULT: &str = "7d";
const SCRUB_EVERY_MIN: Duration = Duration::from_secs(1);
const SCRUB_HOURS_DEFAULT: &str = "01:00-05:00";
const SCRUB_MEGABYTES_DEFAULT: u32 = 4;
const SCRUB_MEGABYTES_MAX: u32 = 1_000;
/// More than this is a mistake in generating the file.
const COLLECTIONS_MAX: usize = 1_000;
/// Templates of one collection or of the grants.
const TEMPLATES_MAX: usize = 100;
/// A secret file is read up to here.
const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    source: Source,
    log: Log,
    http: Http,
    auth: Auth,
    access: Access,
    scrub: Scrub,
    collections: Vec<Collection>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Source {
    uri: Option<String>,
    database: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Log {
    dir: Option<PathBuf>,
    retention: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Http {
    listen: Option<String>,
    admin_listen: Option<String>,
    allowed_origins: Vec<String>,
    requests_per_second: Option<u32>,
    requests_burst: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Auth {
    hs256_secret: Option<String>,
    hs256_secret_file: Option<PathBuf>,
    jwks_url: Option<toml::Value>,
    jwks_file: Option<toml::Value>,
    public_key_file: Option<toml::Value>,
    issuer: Option<String>,
    audience: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Access {
    grants: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Scrub {
    every: Option<String>,
    hours: Option<String>,
    megabytes_per_second: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Collection {
    name: String,
    #[serde(default)]
    channels: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
}

/// The parser's message without the excerpt of the file, which may be the line of a secret.
pub(super) fn without_the_text(error: &toml::de::Error, text: &str) -> String {
    let line =
        error.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
    match line {
        Some(line) => format!("line {line}: {}", error.message()),
        None => error.message().to_owned(),
    }
}

/// Mistakes and doubts, as they are found.
#[derive(Default)]
struct Findings {
    mistakes: Vec<String>,
    warnings: Vec<String>,
}

impl Findings {
    fn mistake(&mut self, text: impl Into<String>) {
        self.mistakes.push(text.into());
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// The value, or the mistake noted.
    fn take<T>(&mut self, key: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|reason| self.mistake(format!("{key}: {reason}"))).ok()
    }
}

impl File {
    pub(super) fn check(self, flags: &Flags) -> Result<Config, ConfigError> {
        let mut findings = Findings::default();
        let source = check_source(self.source, flags, &mut findings);
        let log = check_log(self.log, flags, &mut findings);
        let http = check_http(self.http, flags, &mut findings);
        let auth = check_auth(self.auth, flags, &mut findings);
        let grants = check_templates("access.grants", &self.access.grants, &mut findings);
        if grants.is_empty() {
            findings.warn("access.grants is empty: no token may see anything");
        }
        let scrub = check_scrub(&self.scrub, &mut findings);
        let collections = check_collections(self.collections, &mut findings);
        if let Some(source) = &source {
            for collection in &collections {
                let namespace = source.database.len() + 1 + collection.name.len();
                if namespace > names::NAMESPACE_BYTES_MAX {
                    findings.mistake(format!(
                        "collections: {:?} is too long for MongoDB, which allows {} bytes for database and collection together",
                        collection.name, names::NAMESPACE_BYTES_MAX
                    ));
                }
            }
        }
        match (source, log, http, auth, scrub) {
            (Some(source), Some(log), Some(http), Some(auth), Some(scrub))
                if findings.mistakes.is_empty() =>
            {
                let access = AccessConfig { grants };
                let warnings = findings.warnings;
                Ok(Config { source, log, http, auth, access, scrub, collections, warnings })
            }
            _ => Err(ConfigError::Invalid(findings.mistakes)),
        }
    }
}

fn check_source(file: Source, flags: &Flags, findings: &mut Findings) -> Option<SourceConfig> {
    let uri = flags.mongodb_uri.clone().or(file.uri);
    let uri = findings.take(
        "source.uri",
        match uri {
            None => Err("is missing; set it, --mongodb-uri or TIDEWIRE_MONGODB_URI to mongodb://host:port/?replicaSet=name".to_owned()),
            Some(uri) if uri.starts_with("mongodb://") || uri.starts_with("mongodb+srv://") => Ok(uri),
            Some(_) => Err("must start with mongodb:// or mongodb+srv://".to_owned()),
        },
    );
    let database = flags.database.clone().or(file.database);
    let database = findings.take(
        "source.database",
        match database {
            None => {
                Err("is missing; set it, --database or TIDEWIRE_DATABASE to the database to follow"
                    .to_owned())
            }
            Some(name) => names::check_database(&name).map(|()| name),
        },
    );
    Some(SourceConfig { uri: uri?, database: database? })
}

fn check_log(file: Log, flags: &Flags, findings: &mut Findings) -> Option<LogConfig> {
    let dir = flags.data_dir.clone().or(file.dir).unwrap_or_else(|| DATA_DIR_DEFAULT.into());
    if dir.as_os_str().is_empty() {
        findings.mistake("log.dir: is empty; name a folder");
    }
    let retention = file.retention.as_deref().unwrap_or(RETENTION_DEFAULT);
    let retention = parse_duration(retention).and_then(|retention| {
        if retention < RETENTION_MIN {
            return Err(format!("must be at least 1s, not {retention:?}"));
        }
        Ok(retention)
    });
    let retention = findings.take("log.retention", retention);
    Some(LogConfig { dir, retention: retention? })
}

fn check_http(file: Http, flags: &Flags, findings: &mut Findings) -> Option<HttpConfig> {
    let listen = flags.listen.clone().or(file.listen);
    let listen = listen.as_deref().unwrap_or(LISTEN_DEFAULT);
    let listen = findings.take("http.listen", address(listen));
    let admin = flags.admin_listen.clone().or(file.admin_listen);
    let admin = admin.as_deref().unwrap_or(ADMIN_LISTEN_DEFAULT);
    let admin_listen = findings.take("http.admin_listen", address(admin));
    if let (Some(listen), Some(admin)) = (listen, admin_listen) {
        if listen == admin && listen.port() != 0 {
            findings.mistake(format!(
                "http.admin_listen: is {admin} like http.listen; give it a port of its own"
            ));
        }
        if !admin.ip().is_loopback() {
            findings.warn(format!("http.admin_listen is {admin}: whoever reaches it sees metrics and status without a token"));
        }
    }
    for origin in &file.allowed_origins {
        let scheme = origin.starts_with("https://") || origin.starts_with("http://");
        if !scheme || origin.matches('/').count() != 2 {
            findings.mistake(format!(
                "http.allowed_origins: {origin:?} is not an origin; write it as a browser sends it: https://host or https://host:port"
            ));
        }
    }
    let mut rate = |name, asked: Option<u32>, default| {
        findings.take(name, asked.map_or(Ok(default), at_least_one))
    };
    let per_second =
        rate("http.requests_per_second", file.requests_per_second, REQUESTS_PER_SECOND_DEFAULT);
    let burst = rate("http.requests_burst", file.requests_burst, REQUESTS_BURST_DEFAULT);
    Some(HttpConfig {
        listen: listen?,
        admin_listen: admin_listen?,
        allowed_origins: file.allowed_origins,
        requests_per_second: per_second?,
        requests_burst: burst?,
    })
}

fn at_least_one(number: u32) -> Result<u32, String> {
    if number == 0 { Err("must be at least 1".to_owned()) } else { Ok(number) }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let advice = format!("{text:?} is not an address; write it as 127.0.0.1:8787 or 0.0.0.0:8787");
    text.to_socket_addrs().ok().and_then(|mut found| found.next()).ok_or(advice)
}

fn check_auth(file: Auth, flags: &Flags, findings: &mut Findings) -> Option<AuthConfig> {
    for (key, value) in [
        ("auth.jwks_url", &file.jwks_url),
        ("auth.jwks_file", &file.jwks_file),
        ("auth.public_key_file", &file.public_key_file),
    ] {
        if value.is_some() {
            findings.mistake(format!(
                "{key}: is not supported yet; remove it and use hs256_secret or hs256_secret_file"
            ));
        }
    }
    let secret = secret_of(&file, flags).and_then(|secret| match secret.len() {
        n if n >= HS256_SECRET_BYTES_MIN => Ok(Secret::new(secret)),
        n => Err(format!(
            "has {n} bytes; at least {HS256_SECRET_BYTES_MIN} are needed, make one with: openssl rand -base64 48"
        )),
    });
    let hs256_secret = findings.take("auth.hs256_secret", secret);
    for (key, value) in [("auth.issuer", &file.issuer), ("auth.audience", &file.audience)] {
        if value.as_deref() == Some("") {
            findings.mistake(format!("{key}: is empty; name what tokens carry, or remove the key"));
        }
    }
    Some(AuthConfig { hs256_secret: hs256_secret?, issuer: file.issuer, audience: file.audience })
}

fn secret_of(file: &Auth, flags: &Flags) -> Result<Vec<u8>, String> {
    if let Some(secret) = &flags.jwt_secret {
        return Ok(secret.clone().into_bytes());
    }
    match (&file.hs256_secret, &file.hs256_secret_file) {
        (Some(_), Some(_)) => {
            Err("stands beside hs256_secret_file; keep one of the two".to_owned())
        }
        (Some(secret), None) => Ok(secret.clone().into_bytes()),
        (None, Some(path)) => read_secret(path),
        (None, None) => {
            Err("is missing; set it, hs256_secret_file, --jwt-secret or TIDEWIRE_JWT_SECRET"
                .to_owned())
        }
    }
}

/// The file's bytes less one line end, which editors and `echo` leave.
fn read_secret(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable =
        |why: String| format!("cannot read hs256_secret_file {}: {why}", path.display());
    let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if size > SECRET_FILE_BYTES_MAX {
        return Err(unreadable(format!("it has {size} bytes, a secret has a few dozen")));
    }
    let mut secret = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    for end in [b'\n', b'\r'] {
        if secret.last() == Some(&end) {
            secret.pop();
        }
    }
    Ok(secret)
}

fn check_scrub(file: &Scrub, findings: &mut Findings) -> Option<ScrubConfig> {
    let every = match file.every.as_deref().unwrap_or(SCRUB_EVERY_DEFAULT) {
        "never" => Ok(None),
        text => match parse_duration(text) {
            Ok(every) if every < SCRUB_EVERY_MIN => Err(format!("must be at least 1s, not {text}")),
            Ok(every) => Ok(Some(every)),
            Err(reason) => Err(format!("{reason}, or \"never\"")),
        },
    };
    let every = findings.take("scrub.every", every);
    let hours = Hours::parse(file.hours.as_deref().unwrap_or(SCRUB_HOURS_DEFAULT));
    let hours = findings.take("scrub.hours", hours);
    let rate = match file.megabytes_per_second.unwrap_or(SCRUB_MEGABYTES_DEFAULT) {
        rate @ 1..=SCRUB_MEGABYTES_MAX => Ok(rate),
        rate => Err(format!("must be 1 to {SCRUB_MEGABYTES_MAX}, not {rate}")),
    };
    let rate = findings.take("scrub.megabytes_per_second", rate);
    Some(ScrubConfig { every: every?, hours: hours?, bytes_per_second: rate? * 1_000_000 })
}

fn check_templates(key: &str, templates: &[String], findings: &mut Findings) -> Vec<String> {
    if templates.len() > TEMPLATES_MAX {
        findings.mistake(format!(
            "{key}: has {} entries; at most {TEMPLATES_MAX} are allowed",
            templates.len()
        ));
    }
    for text in templates {
        match check_template(text) {
            Err(reason) => findings.mistake(format!("{key}: {text:?} {reason}")),
            Ok(()) if text.starts_with('{') => findings.warn(format!(
                "{key}: {text:?} begins with a value, so that value can name any channel; put a word before it, as \"user:{text}\""
            )),
            Ok(()) => {}
        }
    }
    templates.to_vec()
}

fn check_collections(file: Vec<Collection>, findings: &mut Findings) -> Vec<CollectionConfig> {
    if file.is_empty() {
        findings.mistake(
            "collections: none is named, so nothing would be served; add [[collections]] with a name and channels",
        );
    }
    if file.len() > COLLECTIONS_MAX {
        findings.mistake(format!(
            "collections: {} are named; at most {COLLECTIONS_MAX} are allowed",
            file.len()
        ));
    }
    for reason in names::collisions(file.iter().map(|collection| collection.name.as_str())) {
        findings.mistake(format!("collections: {reason}"));
    }
    file.into_iter()
        .map(|Collection { name, channels, exclude }| {
            if let Err(reason) = names::check_collection(&name) {
                findings.mistake(format!("collections: {name:?} {reason}"));
            }
            let key = format!("collections.{}.channels", name.escape_debug());
            if channels.is_empty() {
                findings.warn(format!("{key} is empty: no document of it is ever served"));
            }
            let channels = check_templates(&key, &channels, findings);
            let key = format!("collections.{}.exclude", name.escape_debug());
            for path in &exclude {
                findings.take(&key, names::check_exclude(path));
            }
            CollectionConfig { name, channels, exclude }
        })
        .collect()
}
