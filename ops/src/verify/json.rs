//! JSON that keeps everything: the order of fields, repeated names, every digit, any depth.

use std::fmt::{self, Write};

/// A value. Numbers are kept as their text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub(super) fn string(text: impl Into<String>) -> Self {
        Self::String(text.into())
    }

    /// An object with one field.
    pub(super) fn tagged(name: &str, value: Self) -> Self {
        Self::Object(vec![(name.to_owned(), value)])
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { text, at: 0 };
        let value = parser.value()?;
        parser.space();
        if parser.at == text.len() { Ok(value) } else { Err(parser.wrong("the end")) }
    }
}

/// How two values compare.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Comparison {
    Equal,
    /// The same fields and values, fields in another order somewhere.
    OrderOnly,
    /// The path of the first difference, what was expected and what was found there.
    Different {
        path: String,
        expected: String,
        found: String,
    },
}

/// Compares by content; integers by their digits, other numbers as doubles.
pub(super) fn compare(expected: &Json, found: &Json) -> Comparison {
    let mut path = String::new();
    let mut reordered = false;
    match differ(expected, found, &mut path, &mut reordered) {
        Some((path, expected, found)) => Comparison::Different { path, expected, found },
        None if reordered => Comparison::OrderOnly,
        None => Comparison::Equal,
    }
}

type Found = Option<(String, String, String)>;

fn differ(expected: &Json, found: &Json, path: &mut String, reordered: &mut bool) -> Found {
    let at = path.len();
    let difference = match (expected, found) {
        (Json::Array(left), Json::Array(right)) if left.len() == right.len() => {
            left.iter().zip(right).enumerate().find_map(|(index, (left, right))| {
                path.truncate(at);
                let _ = write!(path, "[{index}]");
                differ(left, right, path, reordered)
            })
        }
        (Json::Object(left), Json::Object(right)) if left.len() == right.len() => {
            *reordered |= left.iter().zip(right).any(|(left, right)| left.0 != right.0);
            left.iter().find_map(|(name, left)| {
                path.truncate(at);
                let _ = write!(path, ".{name}");
                let Some((_, right)) = right.iter().find(|field| field.0 == *name) else {
                    return Some((path.clone(), left.to_string(), "nothing".into()));
                };
                differ(left, right, path, reordered)
            })
        }
        (Json::Number(left), Json::Number(right)) if same_number(left, right) => None,
        _ if expected == found => None,
        _ => Some((path.clone(), expected.to_string(), found.to_string())),
    };
    path.truncate(at);
    difference
}

/// Whole numbers by their digits: an Int64 is exact, and a Double is no integer.
fn same_number(left: &str, right: &str) -> bool {
    let is_whole = |text: &str| text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit());
    if is_whole(left) || is_whole(right) {
        return left == right;
    }
    match (left.parse::<f64>(), right.parse::<f64>()) {
        (Ok(left), Ok(right)) => left.to_bits() == right.to_bits(),
        _ => false,
    }
}

impl fmt::Display for Json {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => out.write_str("null"),
            Self::Bool(value) => write!(out, "{value}"),
            Self::Number(text) => out.write_str(text),
            Self::String(text) => write_string(text, out),
            Self::Array(values) => {
                out.write_char('[')?;
                for (index, value) in values.iter().enumerate() {
                    write!(out, "{}{value}", if index > 0 { "," } else { "" })?;
                }
                out.write_char(']')
            }
            Self::Object(fields) => {
                out.write_char('{')?;
                for (index, (name, value)) in fields.iter().enumerate() {
                    out.write_str(if index > 0 { "," } else { "" })?;
                    write_string(name, out)?;
                    write!(out, ":{value}")?;
                }
                out.write_char('}')
            }
        }
    }
}

fn write_string(text: &str, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    out.write_char('"')?;
    for letter in text.chars() {
        match letter {
            '"' => out.write_str("\\\"")?,
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\u{8}' => out.write_str("\\b")?,
            '\u{c}' => out.write_str("\\f")?,
            control if control < ' ' => write!(out, "\\u{:04x}", u32::from(control))?,
            letter => out.write_char(letter)?,
        }
    }
    out.write_char('"')
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn wrong(&self, expected: &str) -> String {
        format!("not JSON at byte {}: expected {expected}", self.at)
    }

    fn peek(&self) -> u8 {
        self.text.as_bytes().get(self.at).copied().unwrap_or(0)
    }

    fn space(&mut self) {
        while matches!(self.peek(), b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
    }

    fn take(&mut self, token: &str) -> bool {
        self.space();
        let there = self.text[self.at..].starts_with(token);
        self.at += if there { token.len() } else { 0 };
        there
    }

    fn value(&mut self) -> Result<Json, String> {
        self.space();
        match self.peek() {
            b'{' => self.object(),
            b'[' => self.array(),
            b'"' => self.string().map(Json::String),
            b'-' | b'0'..=b'9' => Ok(self.number()),
            _ if self.take("null") => Ok(Json::Null),
            _ if self.take("true") => Ok(Json::Bool(true)),
            _ if self.take("false") => Ok(Json::Bool(false)),
            _ => Err(self.wrong("a value")),
        }
    }

    fn array(&mut self) -> Result<Json, String> {
        self.at += 1;
        let mut values = Vec::new();
        if self.take("]") {
            return Ok(Json::Array(values));
        }
        loop {
            values.push(self.value()?);
            if self.take("]") {
                return Ok(Json::Array(values));
            }
            if !self.take(",") {
                return Err(self.wrong(", or ]"));
            }
        }
    }

    fn object(&mut self) -> Result<Json, String> {
        self.at += 1;
        let mut fields = Vec::new();
        if self.take("}") {
            return Ok(Json::Object(fields));
        }
        loop {
            self.space();
            let name = self.string()?;
            if !self.take(":") {
                return Err(self.wrong(":"));
            }
            fields.push((name, self.value()?));
            if self.take("}") {
                return Ok(Json::Object(fields));
            }
            if !self.take(",") {
                return Err(self.wrong(", or }"));
            }
        }
    }

    fn number(&mut self) -> Json {
        let start = self.at;
        while matches!(self.peek(), b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9') {
            self.at += 1;
        }
        Json::Number(self.text[start..self.at].to_owned())
    }

    fn string(&mut self) -> Result<String, String> {
        if self.peek() != b'"' {
            return Err(self.wrong("a string"));
        }
        let start = self.at;
        self.at += 1;
        while self.peek() != b'"' {
            self.at += if self.peek() == b'\\' { 2 } else { 1 };
            if self.at >= self.text.len() {
                return Err(self.wrong("the end of a string"));
            }
        }
        self.at += 1;
        let token = self.text.get(start..self.at).ok_or_else(|| self.wrong("a whole character"))?;
        serde_json::from_str(token).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(left: &str, right: &str, expected: &Comparison) {
        let parse = |text| Json::parse(text).expect("JSON");
        assert_eq!(compare(&parse(left), &parse(right)), *expected, "{left} {right}");
    }

    #[test]
    fn order_is_told_from_content() {
        check(r#"{"a":[1,{"b":2}]}"#, r#"{ "a" : [1, {"b":2}] }"#, &Comparison::Equal);
        check(r#"{"a":1,"b":2}"#, r#"{"b":2,"a":1}"#, &Comparison::OrderOnly);
        let different = |path: &str, expected: &str, found: &str| Comparison::Different {
            path: path.into(),
            expected: expected.into(),
            found: found.into(),
        };
        check(r#"{"a":[1,2]}"#, r#"{"a":[1,3]}"#, &different(".a[1]", "2", "3"));
        check(r#"{"a":1}"#, r#"{"b":1}"#, &different(".a", "1", "nothing"));
        check("7", "7.0", &different("", "7", "7.0"));
        check("0.1", "1e-1", &Comparison::Equal);
        check("-0.0", "0.0", &different("", "-0.0", "0.0"));
    }

    #[test]
    fn text_survives_writing_and_parsing() {
        let text = r#"{"a\"\\\u0001":["ä\n",null,true,-1.5e300,[],{}]}"#;
        let value = Json::parse(text).expect("JSON");
        assert_eq!(value.to_string(), text);
    }
}
