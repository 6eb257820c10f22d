//! JSON-RPC 2.0, a message a line: what a line asks for, and the lines that go back. No I/O.

use serde::Serialize;
use serde_json::{Map, Value, json};
use tidewire_protocol::Position;

use crate::changes::Changed;
use crate::token::Token;

/// Keys of one collection in one notification; beyond them it says "any row".
const IDS_MAX: usize = 1_000;
/// How long a `waitFor` waits that does not say, and at most, in milliseconds.
const WAIT_MS: u64 = 30_000;
const WAIT_MS_MAX: u64 = 10 * 60 * 1_000;

/// What an app may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Method {
    GetStatus,
    GetOnlineStatus,
    PullFromServer,
    SetAuthToken(Token),
    Rebuild,
    WaitFor { position: Position, timeout_ms: u64 },
}

/// One that can be answered.
#[derive(Debug)]
pub(super) struct Request {
    /// `None`: a notification, which gets no answer.
    pub(super) id: Option<Value>,
    pub(super) method: Result<Method, RpcError>,
}

/// The error of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct RpcError {
    code: i32,
    message: String,
}

impl RpcError {
    fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The line is longer than is read.
    pub(super) fn too_long(bytes_max: usize) -> Self {
        Self::new(-32700, format!("a line of more than {bytes_max} bytes"))
    }

    fn invalid(what: &str) -> Self {
        Self::new(-32600, what)
    }

    fn params(what: &str) -> Self {
        Self::new(-32602, what)
    }

    /// The client ended.
    pub(super) fn ended() -> Self {
        Self::new(-32000, "the client has ended")
    }

    /// The server did not answer in time.
    pub(super) fn no_answer() -> Self {
        Self::new(-32001, "the server has not answered in time; it goes on being asked")
    }
}

/// Reads a line.
///
/// # Errors
/// The answer, where there is nothing to do but to send it.
pub(super) fn read(line: &[u8]) -> Result<Request, String> {
    let refuse = |id: Value, error: RpcError| Err(answer(&id, Err(error)));
    let message: Value = match serde_json::from_slice(line) {
        Ok(message) => message,
        Err(error) => {
            let error = RpcError::new(-32700, format!("not JSON: {error}"));
            return refuse(Value::Null, error);
        }
    };
    let Value::Object(mut message) = message else {
        let what = "a message is one object, and a line is one message (no batches)";
        return refuse(Value::Null, RpcError::invalid(what));
    };
    let id = message.remove("id");
    if !matches!(id, None | Some(Value::Null | Value::String(_) | Value::Number(_))) {
        let what = "an id is a string or a number";
        return refuse(Value::Null, RpcError::invalid(what));
    }
    let named = id.clone().unwrap_or_default();
    if message.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return refuse(named, RpcError::invalid("\"jsonrpc\" must be \"2.0\""));
    }
    let Some(name) = message.get("method").and_then(Value::as_str).map(str::to_owned) else {
        return refuse(named, RpcError::invalid("\"method\" must be a string"));
    };
    let params = message.remove("params");
    Ok(Request { id, method: method(&name, params) })
}

fn method(name: &str, params: Option<Value>) -> Result<Method, RpcError> {
    let params = match params {
        None => Map::new(),
        Some(Value::Object(params)) => params,
        Some(_) => return Err(RpcError::params("params is an object")),
    };
    match name {
        "getStatus" => Ok(Method::GetStatus),
        "getOnlineStatus" => Ok(Method::GetOnlineStatus),
        "pullFromServer" => Ok(Method::PullFromServer),
        "rebuild" => Ok(Method::Rebuild),
        "setAuthToken" => match params.get("token").and_then(Value::as_str).map(Token::new) {
            Some(token) if token.is_plain() => Ok(Method::SetAuthToken(token)),
            _ => Err(RpcError::params("token is a JWT")),
        },
        "waitFor" => {
            let text = params.get("position").and_then(Value::as_str).unwrap_or_default();
            let position = text.parse().map_err(|_| {
                RpcError::params("position is 16 hex digits, a dot and 8 hex digits")
            })?;
            let timeout_ms = match params.get("timeoutMs") {
                None => WAIT_MS,
                Some(ms) => ms.as_u64().filter(|ms| *ms <= WAIT_MS_MAX).ok_or_else(|| {
                    RpcError::params("timeoutMs is a whole number from 0 to 600000")
                })?,
            };
            Ok(Method::WaitFor { position, timeout_ms })
        }
        _ => Err(RpcError::new(-32601, "there is no such method")),
    }
}

/// The line that answers the request with that id.
pub(super) fn answer(id: &Value, result: Result<Value, RpcError>) -> String {
    let message = match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(error) => json!({ "jsonrpc": "2.0", "id": id, "error": error }),
    };
    format!("{message}\n")
}

/// The line that tells something that nobody asked for.
pub(super) fn notification(method: &str, params: &impl Serialize) -> String {
    let message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
    format!("{message}\n")
}

/// The line that tells what a commit changed.
pub(super) fn changes(changed: &Changed) -> String {
    let mut changed = changed.clone();
    for rows in &mut changed.collections {
        rows.ids.take_if(|ids| ids.len() > IDS_MAX);
    }
    notification("changes", &changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<Method, i32> {
        read(line.as_bytes()).unwrap().method.map_err(|error| error.code)
    }

    #[test]
    fn each_method_is_read_with_its_params() {
        let line = |rest: &str| format!(r#"{{"jsonrpc":"2.0","id":1,{rest}}}"#);
        assert_eq!(asked(&line(r#""method":"getStatus""#)), Ok(Method::GetStatus));
        assert_eq!(asked(&line(r#""method":"rebuild","params":{}"#)), Ok(Method::Rebuild));
        let token = r#""method":"setAuthToken","params":{"token":" a.b.c "}"#;
        assert_eq!(asked(&line(token)), Ok(Method::SetAuthToken(Token::new("a.b.c"))));
        let wait = r#""method":"waitFor","params":{"position":"0000000000000007.00000000"}"#;
        let position = Position::new(7, 0);
        assert_eq!(asked(&line(wait)), Ok(Method::WaitFor { position, timeout_ms: WAIT_MS }));
        for (wrong, code) in [
            (r#""method":"getstatus""#, -32601),
            (r#""method":"getStatus","params":[]"#, -32602),
            (r#""method":"setAuthToken""#, -32602),
            (r#""method":"setAuthToken","params":{"token":""}"#, -32602),
            (r#""method":"setAuthToken","params":{"token":"a\nb"}"#, -32602),
            (r#""method":"waitFor","params":{"position":"7"}"#, -32602),
            (
                r#""method":"waitFor","params":{"position":"0000000000000007.00000000","timeoutMs":-1}"#,
                -32602,
            ),
        ] {
            assert_eq!(asked(&line(wrong)), Err(code), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_request_is_answered_as_the_standard_says() {
        for (line, code, id) in [
            ("", -32700, Value::Null),
            ("{", -32700, Value::Null),
            ("\u{fffd}", -32700, Value::Null),
            ("[]", -32600, Value::Null),
            (r#"[{"jsonrpc":"2.0","id":1,"method":"getStatus"}]"#, -32600, Value::Null),
            ("7", -32600, Value::Null),
            (r#"{"id":7,"method":"getStatus"}"#, -32600, json!(7)),
            (r#"{"jsonrpc":"1.0","id":"a","method":"getStatus"}"#, -32600, json!("a")),
            (r#"{"jsonrpc":"2.0","id":7}"#, -32600, json!(7)),
            (r#"{"jsonrpc":"2.0","id":{},"method":"getStatus"}"#, -32600, Value::Null),
        ] {
            let told = read(line.as_bytes()).unwrap_err();
            let told: Value = serde_json::from_str(&told).unwrap();
            assert_eq!((&told["error"]["code"], &told["id"]), (&json!(code), &id), "{line}");
        }
    }
}
