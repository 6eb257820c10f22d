//! The rules of the house: who may know whom, heads of files, lengths.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const PACKAGES: [&str; 5] = ["protocol", "server", "client", "ops", "tests"];
const LINES_MAX: usize = 500;

/// A place that is against a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, from the top.
    pub path: PathBuf,
    /// What it does.
    pub what: String,
    /// False where it is only worth a look.
    pub is_wrong: bool,
}

/// A room and what its code must not name, with the reason.
struct Wall {
    room: &'static str,
    /// Parts of the room for which it does not hold.
    but: &'static [&'static str],
    never: &'static [&'static str],
    reason: &'static str,
}

const WALLS: &[Wall] = &[
    Wall {
        room: "protocol/src",
        but: &[],
        never: &["tokio", "axum", "mongodb", "rusqlite", "reqwest", "hyper"],
        reason: "the protocol does no I/O",
    },
    Wall {
        room: "server/src",
        but: &["server/src/capture"],
        never: &["mongodb"],
        reason: "the driver's home is capture",
    },
    Wall {
        room: "server/src",
        but: &["server/src/serve"],
        never: &["axum"],
        reason: "axum's home is serve",
    },
    Wall {
        room: "server/src",
        but: &["server/src/log"],
        never: &["rusqlite"],
        reason: "the store's home is the log",
    },
    Wall {
        room: "server/src",
        but: &[],
        never: &["tidewire", "tidewire_ops"],
        reason: "the server knows no client and no operator",
    },
    Wall {
        room: "server/src/capture",
        but: &[],
        never: &["crate::serve"],
        reason: "capture and serve meet in the log alone",
    },
    Wall {
        room: "server/src/serve",
        but: &[],
        never: &["crate::capture"],
        reason: "capture and serve meet in the log alone",
    },
    Wall {
        room: "server/src/log",
        but: &[],
        never: &["crate::capture", "crate::serve"],
        reason: "the log knows neither who writes nor who reads",
    },
    Wall {
        room: "client/src",
        but: &["client/src/replica", "client/src/lib.rs"],
        never: &["rusqlite"],
        reason: "SQLite's home is the replica",
    },
    Wall {
        room: "client/src",
        but: &["client/src/transport"],
        never: &["reqwest", "tungstenite", "tokio_tungstenite"],
        reason: "sockets' home is the transport",
    },
    Wall {
        room: "client/src",
        but: &[],
        never: &["tidewire_server", "tidewire_ops", "mongodb", "axum"],
        reason: "the client knows the wire only",
    },
    Wall {
        room: "client/src/machine",
        but: &[],
        never: &["tokio", "std::time::Instant::now", "rusqlite", "reqwest"],
        reason: "the machine does no I/O",
    },
    Wall {
        room: "ops/src/verify",
        but: &[],
        never: &["tidewire_server", "tidewire_protocol", "tidewire"],
        reason: "the comparison is independent of what it judges",
    },
];

/// Looks at every source of the workspace at `top`.
///
/// # Errors
/// When a file can't be read.
pub fn inspect(top: &Path) -> io::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for package in PACKAGES {
        for path in sources(&top.join(package))? {
            let text = fs::read_to_string(&path)?;
            let path = path.strip_prefix(top).unwrap_or(&path).to_owned();
            look(&path, &text, &mut findings);
        }
    }
    Ok(findings)
}

fn sources(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    Ok(paths)
}

fn look(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    let mut find = |what: String, is_wrong| {
        findings.push(Finding { path: path.to_owned(), what, is_wrong });
    };
    if !text.starts_with("//!") {
        find("does not begin with what it is for (//!)".into(), true);
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        find(format!("has {lines} lines, more than {LINES_MAX}: is there a reason?"), false);
    }
    let is_test = path.file_name().is_some_and(|name| name == "tests.rs")
        || path.components().any(|part| part.as_os_str() == "tests");
    if is_test {
        return;
    }
    let code = code(text);
    for wall in WALLS {
        if !path.starts_with(wall.room) && !is_file_of(path, wall.room) {
            continue;
        }
        if wall.but.iter().any(|room| path.starts_with(room) || is_file_of(path, room)) {
            continue;
        }
        for name in wall.never.iter().filter(|name| names(&code, name)) {
            find(format!("names {name}: {}", wall.reason), true);
        }
    }
}

/// `a/b.rs` is of the room `a/b`.
fn is_file_of(path: &Path, room: &str) -> bool {
    path.with_extension("") == Path::new(room)
}

/// The text without comments and without the tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether the path `name` begins somewhere in the code: `name::` with no part of a name before it.
fn names(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    let alone = |at: usize| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|letter| !letter.is_alphanumeric() && !"_:".contains(letter))
    };
    code.match_indices(&path).any(|(at, _)| alone(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, expected: &[&str]) {
        let mut findings = Vec::new();
        look(Path::new(path), text, &mut findings);
        let what: Vec<&str> = findings.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(what, expected, "{path}");
    }

    #[test]
    fn walls_hold_for_code_and_not_for_words() {
        let wrong = "names crate::serve: capture and serve meet in the log alone";
        check("server/src/capture/tail.rs", "//! A.\nuse crate::serve::Page;", &[wrong]);
        check("server/src/capture/tail.rs", "//! A.\n// crate::serve::Page", &[]);
        check("server/src/capture.rs", "//! A.\nuse mongodb::Client;", &[]);
        check("server/src/run.rs", "//! A.\n#[cfg(test)]\nuse mongodb::Client;", &[]);
        check("client/src/lib.rs", "//! A.\nlet a = tidewire_protocol::key::mongo_id(b);", &[]);
    }

    #[test]
    fn a_file_begins_with_what_it_is_for() {
        check("ops/src/lib.rs", "use a;", &["does not begin with what it is for (//!)"]);
    }

    #[test]
    fn this_workspace_keeps_its_rules() {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the top");
        let findings = inspect(top).expect("the sources");
        let wrong: Vec<&Finding> = findings.iter().filter(|finding| finding.is_wrong).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
