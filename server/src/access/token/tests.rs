//! Which tokens are refused (FAULTS row 42, the part that HS256 has).

use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
use serde_json::json;

use super::*;
use crate::config::Secret;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn verifier(issuer: Option<&str>, audience: Option<&str>) -> TokenVerifier {
    let auth = AuthConfig {
        hs256_secret: Secret::new(SECRET.to_vec()),
        issuer: issuer.map(str::to_owned),
        audience: audience.map(str::to_owned),
    };
    TokenVerifier::new(&auth, Grants::compile(&["user:{sub}".to_owned()]).unwrap())
}

fn sign(header: &Header, claims: &Value) -> String {
    encode(header, claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

fn in_seconds(seconds: i64) -> u64 {
    get_current_timestamp().strict_add_signed(seconds)
}

/// The claims of a good token with `changes` laid over; null takes a claim away.
fn claims(changes: Value) -> Value {
    let mut claims = json!({"sub": "ann", "exp": in_seconds(60)});
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

fn check(changes: Value, expected: Result<(), TokenError>) {
    let shown = changes.to_string();
    let verdict = verifier(None, None).verify(&sign(&Header::default(), &claims(changes)));
    assert_eq!(verdict.map(|_| ()), expected, "{shown}");
}

#[test]
fn a_good_token_says_who_it_is_and_what_it_holds() {
    let token = sign(&Header::default(), &claims(json!({})));
    let identity = verifier(None, None).verify_header(Some(&format!("bearer {token}"))).unwrap();
    assert_eq!(
        (identity.subject.as_str(), identity.channels),
        ("ann", vec!["user:ann".to_owned()])
    );
}

#[test]
fn times_are_checked_with_a_leeway_of_ten_seconds_at_most() {
    check(json!({"exp": in_seconds(-5)}), Ok(()));
    check(json!({"exp": in_seconds(-12)}), Err(TokenError::Expired));
    check(json!({"nbf": in_seconds(5)}), Ok(()));
    check(json!({"nbf": in_seconds(15)}), Err(TokenError::NotYet));
    check(json!({"exp": in_seconds(60) as f64 + 0.5}), Ok(()));
}

#[test]
fn claims_that_are_missing_or_of_the_wrong_kind_are_refused() {
    check(json!({"sub": null}), Err(TokenError::Claim("sub")));
    check(json!({"sub": ""}), Err(TokenError::Claim("sub")));
    check(json!({"sub": 7}), Err(TokenError::Claim("sub")));
    // The library itself stumbles over this one.
    check(json!({"sub": ["ann"]}), Err(TokenError::Invalid));
    check(json!({"exp": null}), Err(TokenError::Claim("exp")));
    check(json!({"exp": "9999999999"}), Err(TokenError::Claim("exp")));
    check(json!({"exp": -1}), Err(TokenError::Claim("exp")));
    check(json!({"exp": 1e300}), Err(TokenError::Claim("exp")));
    check(json!({"nbf": "0"}), Err(TokenError::Claim("nbf")));
    check(json!({"iat": "now"}), Err(TokenError::Claim("iat")));
    check(json!({"iss": 7}), Err(TokenError::Claim("iss")));
    check(json!({"aud": {"$ne": ""}}), Err(TokenError::Claim("aud")));
}

#[test]
fn issuer_and_audience_are_checked_where_they_are_set() {
    let check = |changes: Value, expected: Result<(), TokenError>| {
        let token = sign(&Header::default(), &claims(changes));
        let verdict = verifier(Some("me"), Some("you")).verify(&token);
        assert_eq!(verdict.map(|_| ()), expected);
    };
    check(json!({"iss": "me", "aud": "you"}), Ok(()));
    check(json!({"iss": "me", "aud": ["x", "you"]}), Ok(()));
    check(json!({"iss": "me"}), Err(TokenError::Claim("aud")));
    check(json!({"aud": "you"}), Err(TokenError::Claim("iss")));
    check(json!({"iss": "me", "aud": "x"}), Err(TokenError::Audience));
    check(json!({"iss": "x", "aud": "you"}), Err(TokenError::Issuer));
    check(json!({"iss": ["me"], "aud": "you"}), Err(TokenError::Claim("iss")));
}

#[test]
fn the_algorithm_follows_the_key_and_never_the_token() {
    use base64::Engine as _;
    let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let body = part(&claims(json!({})).to_string());
    for alg in ["none", "None", "HS512", "RS256", "ES256", "EdDSA", "", "HS256 "] {
        let head = part(&json!({"alg": alg, "typ": "JWT"}).to_string());
        let signed = sign(&Header::new(Algorithm::HS512), &claims(json!({})));
        let signature = signed.rsplit('.').next().unwrap().to_owned();
        for signature in ["", &signature] {
            let verdict = verifier(None, None).verify(&format!("{head}.{body}.{signature}"));
            assert_eq!(verdict, Err(TokenError::Invalid), "{alg}");
        }
    }
    let hs512 = sign(&Header::new(Algorithm::HS512), &claims(json!({})));
    assert_eq!(verifier(None, None).verify(&hs512), Err(TokenError::Invalid));
}

#[test]
fn what_a_header_points_at_is_not_read_and_what_it_demands_is_refused() {
    let mut header = Header {
        kid: Some("../../etc/passwd'; DROP TABLE keys --".to_owned()),
        jku: Some("http://127.0.0.1:1/keys".to_owned()),
        x5u: Some("http://127.0.0.1:1/cert".to_owned()),
        ..Header::default()
    };
    assert!(verifier(None, None).verify(&sign(&header, &claims(json!({})))).is_ok());
    header.crit = Some(vec!["exp".to_owned()]);
    let verdict = verifier(None, None).verify(&sign(&header, &claims(json!({}))));
    assert_eq!(verdict, Err(TokenError::Critical));
}

#[test]
fn what_is_not_a_token_is_refused() {
    let token = sign(&Header::default(), &claims(json!({})));
    let other = encode(&Header::default(), &claims(json!({})), &EncodingKey::from_secret(&[7; 32]));
    let cut = &token[..token.len() - 2];
    for bad in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        cut,
        &other.unwrap(),
        &"x".repeat(20_000),
        &format!("{token}.x"),
    ] {
        assert_eq!(verifier(None, None).verify(bad), Err(TokenError::Invalid), "{bad}");
    }
    for bad in ["", "Bearer", "Bearer ", "Basic YTpi", &token] {
        assert_eq!(
            verifier(None, None).verify_header(Some(bad)),
            Err(TokenError::NotBearer),
            "{bad}"
        );
    }
    assert_eq!(verifier(None, None).verify_header(None), Err(TokenError::Missing));
}
