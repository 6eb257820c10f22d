//! `tidewire daemon`, over its real socket and over standard input and output.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::server::{Server, json as answer};
use super::{page, token};

const PATIENCE: Duration = Duration::from_secs(30);

fn program(server: &Server, db: &Path) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_tidewire"));
    // Only what was asked for takes the server's next answer.
    program.args(["daemon", "--transport", "poll", "--server", &server.address, "--db"]).arg(db);
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    program
}

/// A daemon that is killed with its test.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(server: &Server, db: &Path) -> Self {
        let mut child = program(server, db).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let socket = line.trim().strip_prefix("listening at ").expect(&line);
        Self { child, socket: socket.into() }
    }

    fn app(&self) -> App<UnixStream> {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        App { input: BufReader::new(stream.try_clone().unwrap()), output: stream, told: Vec::new() }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// One app's end of the line.
struct App<W> {
    input: BufReader<W>,
    output: UnixStream,
    /// Notifications that came meanwhile.
    told: Vec<Value>,
}

impl App<UnixStream> {
    fn send(&mut self, line: &str) {
        writeln!(self.output, "{line}").unwrap();
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.input.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Sends a line; its answer.
    fn ask(&mut self, line: &str) -> Value {
        self.send(line);
        loop {
            let message = self.next();
            if message.get("method").is_none() {
                return message;
            }
            self.told.push(message);
        }
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        let line = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer = self.ask(&line.to_string());
        assert_eq!(answer["id"], 1, "{answer}");
        answer["result"].clone()
    }

    /// Reads until a notification is as wanted.
    fn told(&mut self, method: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let told = std::mem::take(&mut self.told);
        let is = |message: &Value| message["method"] == method && wanted(&message["params"]);
        if let Some(message) = told.into_iter().find(is) {
            return message["params"].clone();
        }
        loop {
            let message = self.next();
            if is(&message) {
                return message["params"].clone();
            }
        }
    }
}

fn row(n: u64, cursor: &str) -> String {
    page(&[("users", "a", n, Some(r#"{"n":1}"#))], cursor, false, true)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_hands_its_token_over_and_is_told_what_changes() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("replica.db");
    let server = Server::start([answer(200, &row(1, "c1"))]).await;
    let daemon = Daemon::start(&server, &db);
    assert_eq!(daemon.socket, folder.path().join("replica.db.sock"));
    let mode = std::fs::metadata(&daemon.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "its owner alone may open it");
    let mut app = daemon.app();
    app.call("getStatus", json!({}));
    app.told("status", |status| status["state"] == "needs_auth");
    assert!(server.asked().is_empty(), "without a token nothing is asked");
    assert_eq!(app.call("setAuthToken", json!({ "token": token("ada") })), json!({}));
    let live = app.told("status", |status| status["state"] == "polling");
    assert_eq!(live["server"], format!("{}/", server.address));
    let online = app.call("getOnlineStatus", json!({}));
    assert_eq!((&online["isOnline"], &online["state"]), (&true.into(), &"polling".into()));

    let mut other = daemon.app();
    other.call("getStatus", json!({}));
    server.push(answer(200, &row(2, "c2")));
    let pulled = app.call("pullFromServer", json!({}));
    assert_eq!(pulled["success"], true, "{pulled}");
    for app in [&mut app, &mut other] {
        let changed = app.told("changes", |changed| changed["everything"] == false);
        let expected = json!([{ "collection": "users", "table": "users", "ids": ["a"] }]);
        assert_eq!(changed["collections"], expected, "{changed}");
    }
    let position = "0000000000000002.00000000";
    let waited = app.call("waitFor", json!({ "position": position }));
    assert_eq!(waited, json!({ "reached": true, "position": position }));
    let later = json!({ "position": "0000000000000003.00000000", "timeoutMs": 20 });
    assert_eq!(app.call("waitFor", later)["reached"], false);
    assert_eq!(app.call("rebuild", json!({})), json!({}));
    app.told("status", |status| status["state"] == "resyncing");
}

/// Another user of this machine (`nobody`), who tries to talk to a daemon: what came of it. `None` where
/// we may not be somebody else, or lack what that takes.
fn stranger(socket: &Path) -> Option<String> {
    let program = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.settimeout(20)\n\
        try:\n    s.connect(sys.argv[1])\n    s.sendall(b'{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"getStatus\"}\\n')\n\
        \x20   print('was told', s.recv(1000))\n\
        except OSError as error: print(type(error).__name__)\n";
    let mut python = Command::new("python3");
    let nobody = 65_534;
    python.args(["-c", program]).arg(socket).uid(nobody).gid(nobody);
    let output = python.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_of_the_machine_is_not_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // Anybody may look into the folder: the socket itself must keep others out.
    mode(folder.path(), 0o755);
    let server = Server::start([]).await;
    let daemon = Daemon::start(&server, &folder.path().join("replica.db"));
    let Some(came) = stranger(&daemon.socket) else {
        eprintln!("SKIPPED: to be another user takes root and python3");
        return;
    };
    assert_eq!(came, "PermissionError");
    // Where somebody has opened the socket's file to all, the daemon asks who it is.
    mode(&daemon.socket, 0o666);
    let came = stranger(&daemon.socket).unwrap();
    let refused = ["was told b''", "BrokenPipeError", "ConnectionResetError"];
    assert!(refused.contains(&came.as_str()), "{came}");
    let mut own = daemon.app();
    assert!(own.call("getStatus", json!({}))["state"].is_string(), "its own user is let in");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_gets_its_error_and_the_line_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start([]).await;
    let daemon = Daemon::start(&server, &folder.path().join("replica.db"));
    let mut app = daemon.app();
    for (line, code) in [
        ("not json", -32700),
        ("[]", -32600),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"getStatus"}]"#, -32600),
        (r#"{"id":1,"method":"getStatus"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"drop"}"#, -32601),
        (r#"{"jsonrpc":"2.0","id":1,"method":"waitFor","params":{"position":7}}"#, -32602),
    ] {
        assert_eq!(app.ask(line)["error"]["code"], code, "{line}");
    }
    app.output.write_all(b"\xff\xfe\n").unwrap();
    assert_eq!(app.ask("")["error"]["code"], -32700, "an empty line is none");
    // Without an id nothing is answered, an error neither; the next answer is the next request's.
    app.send(r#"{"jsonrpc":"2.0","method":"nonsense"}"#);
    assert_eq!(app.ask(r#"{"jsonrpc":"2.0","id":"x","method":"getStatus"}"#)["id"], "x");
    // A line without an end is not gathered: the line is told so and closed.
    let mut endless = daemon.app();
    let sent = endless.output.write_all(&vec![b'x'; 300 << 10]);
    assert!(sent.is_ok() || sent.is_err_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe));
    assert_eq!(endless.next()["error"]["code"], -32700);
    let mut rest = String::new();
    assert!(endless.input.read_line(&mut rest).map_or(true, |read| read == 0), "{rest}");
    app.call("getStatus", json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_taken_is_left_alone_and_one_that_was_left_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (db, other) = (folder.path().join("replica.db"), folder.path().join("other.db"));
    let server = Server::start([]).await;
    let mut daemon = Daemon::start(&server, &db);
    let at = |db: &Path, socket: &Path| {
        program(&server, db).arg("--socket").arg(socket).output().unwrap()
    };
    let second = at(&other, &daemon.socket);
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains("another daemon listens"));
    let diary = folder.path().join("diary");
    std::fs::write(&diary, "dear diary").unwrap();
    let taken = at(&other, &diary);
    assert_eq!(taken.status.code(), Some(1), "{taken:?}");
    assert_eq!(std::fs::read(&diary).unwrap(), b"dear diary");
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(daemon.socket.exists(), "a killed daemon leaves its socket");
    let mut again = Daemon::start(&server, &db);
    again.app().call("getStatus", json!({}));
    let pid = again.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(again.child.wait().unwrap().success());
    assert!(!again.socket.exists(), "and one that ends in order takes it along");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_standard_input_what_was_asked_is_answered_before_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start([answer(200, &row(1, "c1"))]).await;
    let mut child = program(&server, &folder.path().join("replica.db"));
    let mut child = child.arg("--stdio").spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let token = json!({ "jsonrpc": "2.0", "id": 1, "method": "setAuthToken", "params": { "token": token("ada") } });
    let wait = json!({ "jsonrpc": "2.0", "id": 2, "method": "waitFor", "params": { "position": "0000000000000001.00000000" } });
    writeln!(input, "{token}\n{wait}").unwrap();
    drop(input);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let reached = answers.iter().find(|answer| answer["id"] == 2).expect("an answer");
    assert_eq!(reached["result"]["reached"], true, "{text}");
}
