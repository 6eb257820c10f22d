//! The steps of `check`, in order: the quick ones first, the test runner's summary last, and under it
//! which tests have not tested anything here.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::house;
use crate::mongod::{FetchError, Progress, fetch};
use crate::process::{Guarded, Launch, this_program};

/// The exit code of a script that could not run here.
const SKIPPED: i32 = 77;
/// What a test prints that can't test here what it is for; the reason follows.
const SKIPPED_TEST: &str = "SKIPPED: ";
/// Where the runner puts what tests have printed, as `.config/nextest.toml` says.
const TESTS_REPORT: &str = "target/nextest/check/junit.xml";
const COMPOSE_SCRIPT: &str = "ops/docker/prove.sh";
/// How long load and faults go on, minutes.
const TORTURE_MINUTES: &str = "5";
const POLL: Duration = Duration::from_millis(200);
const TORTURE: &str = "the torture run";

/// What did not pass.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A program of a step failed; it has said why.
    #[error("check: {0} failed")]
    Step(&'static str),
    /// A program is missing.
    #[error("check: {program} can't be started ({reason}); {remedy}")]
    Missing {
        /// The program.
        program: &'static str,
        /// Why.
        reason: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The rules of the house.
    #[error("check: {0} places are against the rules of the house")]
    House(usize),
    /// The sources can't be read.
    #[error("check: read the sources: {0}")]
    Sources(std::io::Error),
    /// The torture run can't be started or waited for.
    #[error("check: {TORTURE}: {0}")]
    Torture(anyhow::Error),
    /// No mongod for the tests.
    #[error("check: the tests need a mongod: {0}")]
    Mongod(#[from] FetchError),
}

/// Runs all steps in the workspace at `top` and stops at the first that does not pass. The last lines on
/// the terminal are the test runner's own, and one for each test that was skipped.
///
/// # Errors
/// See [`CheckError`].
pub fn run(top: &Path, with_torture: bool) -> Result<(), CheckError> {
    step("formatting", || cargo(top, "formatting", &["fmt", "--all", "--check"]))?;
    step("the rules of the house", || inspect_house(top))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    step("lints", || cargo(top, "lints", &clippy))?;
    step("programs", || cargo(top, "programs", &["build", "--workspace", "--bins"]))?;
    step("a mongod for the tests", || Ok(fetch(Progress::Shown).map(drop)?))?;
    step("the stack in containers", || compose(top))?;
    if with_torture {
        // By itself: an image that is built beside it takes the time that its parts have to answer.
        step(TORTURE, || end_torture(begin_torture(top)?))?;
    }
    tests(top)
}

/// Begins five minutes of random faults under random load, quietly. Ends with what comes back.
fn begin_torture(top: &Path) -> Result<Guarded, CheckError> {
    let dir = top.join("target/torture").join(std::process::id().to_string());
    let began = || {
        std::fs::create_dir_all(&dir)?;
        // Ours may have been built anew.
        let program = dir.join("tidewire-ops");
        std::fs::copy(this_program()?, &program)?;
        Launch::new(program, dir.join("printed.log"))
            .args(["torture", "--minutes", TORTURE_MINUTES, "--dir"])
            .arg(dir.join("run"))
            .start()
    };
    began().map_err(CheckError::Torture)
}

fn end_torture(mut torture: Guarded) -> Result<(), CheckError> {
    let status = loop {
        match torture.ended().map_err(|error| CheckError::Torture(error.into()))? {
            Some(status) => break status,
            None => std::thread::sleep(POLL),
        }
    };
    say(&torture.last_words(usize::MAX));
    if status.success() { Ok(()) } else { Err(CheckError::Step(TORTURE)) }
}

fn step(name: &str, run: impl FnOnce() -> Result<(), CheckError>) -> Result<(), CheckError> {
    say(&format!("--- {name}"));
    let start = Instant::now();
    run()?;
    say(&format!("    {name}: {} s", start.elapsed().as_secs()));
    Ok(())
}

fn say(line: &str) {
    println!("{line}");
    // The steps' programs write to the same place.
    let _ = std::io::stdout().flush();
}

fn cargo(top: &Path, step: &'static str, args: &[&str]) -> Result<(), CheckError> {
    let status = Command::new(cargo_program()).args(args).current_dir(top).status();
    let status = status.map_err(|reason| CheckError::Missing {
        program: "cargo",
        reason,
        remedy: "install Rust (https://rustup.rs)",
    })?;
    if status.success() { Ok(()) } else { Err(CheckError::Step(step)) }
}

/// The cargo that runs us, or the one on the PATH.
fn cargo_program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn inspect_house(top: &Path) -> Result<(), CheckError> {
    let findings = house::inspect(top).map_err(CheckError::Sources)?;
    let mut wrong = 0;
    for finding in &findings {
        let kind = if finding.is_wrong { "wrong" } else { "note" };
        wrong += usize::from(finding.is_wrong);
        say(&format!("    {kind}: {}: {}", finding.path.display(), finding.what));
    }
    if wrong == 0 { Ok(()) } else { Err(CheckError::House(wrong)) }
}

fn compose(top: &Path) -> Result<(), CheckError> {
    let script = top.join(COMPOSE_SCRIPT);
    if !script.is_file() {
        say(&format!("    SKIPPED: there is no {COMPOSE_SCRIPT}"));
        return Ok(());
    }
    let status = Command::new("bash").arg(script).current_dir(top).stdin(Stdio::null()).status();
    let status = status.map_err(|reason| CheckError::Missing {
        program: "bash",
        reason,
        remedy: "install bash",
    })?;
    match status.code() {
        Some(0) => Ok(()),
        Some(SKIPPED) => {
            say("    SKIPPED: the stack in containers was NOT tested: no engine can be had here");
            Ok(())
        }
        _ => Err(CheckError::Step("the stack in containers")),
    }
}

fn tests(top: &Path) -> Result<(), CheckError> {
    say("--- tests");
    let nextest = Command::new(cargo_program())
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if nextest.is_ok_and(|status| status.success()) {
        let ran = cargo(top, "tests", &["nextest", "run", "--workspace", "--profile", "check"]);
        let report = std::fs::read_to_string(top.join(TESTS_REPORT)).unwrap_or_default();
        for line in skipped(&report) {
            say(&line);
        }
        return ran;
    }
    say("    cargo-nextest is missing (cargo install --locked cargo-nextest): using cargo test");
    cargo(top, "tests", &["test", "--workspace"])
}

/// A line for each test of the runner's report that was skipped, with the reason.
fn skipped(report: &str) -> Vec<String> {
    let mut test = "";
    let mut lines = Vec::new();
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("<testcase name=\"") {
            test = rest.split('"').next().unwrap_or_default();
        }
        if let Some((_, reason)) = line.split_once(SKIPPED_TEST) {
            let reason = reason.split("</").next().unwrap_or_default();
            lines.push(format!("    {SKIPPED_TEST}{test}: {reason}"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_test_that_was_skipped_is_told_with_its_reason() {
        let report = r#"<testsuite name="promises" tests="2">
        <testcase name="log_life::disk::a_full_disk" classname="promises" time="0.1">
            <system-out>running 1 test</system-out>
            <system-err>SKIPPED: a small disk needs root and tmpfs
</system-err>
        </testcase>
        <testcase name="harness::it_starts" classname="promises" time="0.1">
            <system-err></system-err>
        </testcase>
        <testcase name="corpus" classname="corpus"><system-err>SKIPPED: no corpus</system-err>"#;
        let expected = [
            "    SKIPPED: log_life::disk::a_full_disk: a small disk needs root and tmpfs",
            "    SKIPPED: corpus: no corpus",
        ];
        assert_eq!(super::skipped(report), expected);
    }
}
