//! What is refused, how, and that nothing is guessed, shown or lost (FAULTS rows 42, 43, 45, 47, 49, 50).

use bson::rawdoc;
use serde_json::{Map, Value, json};
use tidewire_server::serve::Rate;
use tidewire_server::status::{CopyProgress, SourcePhase};
use tidewire_tests::harness::{Claims, SECRET, Socket, sign, socket_request_as};

use crate::served::{Served, at};

/// The answer must be an error of `status` and `code`, whole; gives it back.
async fn refused(answer: reqwest::Response, status: u16, code: &str, what: &str) -> Value {
    assert_eq!(answer.status(), status, "{what}");
    let headers = answer.headers().clone();
    let body = crate::served::json(answer).await;
    assert_eq!(body["error"]["code"], code, "{what}: {body}");
    assert_eq!(body["success"], false);
    assert_eq!(body["error"]["requestId"].as_str(), headers["x-request-id"].to_str().ok());
    for text in ["message", "remedy"] {
        assert!(body["error"][text].as_str().is_some_and(|t| t.len() > 3), "{what}: {body}");
    }
    let retry = body["error"].get("retryAfter").map(ToString::to_string);
    assert_eq!(retry.as_deref(), headers.get("retry-after").map(|v| v.to_str().unwrap()), "{what}");
    assert_eq!(headers.contains_key("www-authenticate"), status == 401, "{what}");
    body
}

async fn filled() -> Served {
    let mut served = Served::start().await;
    served.put(at(1), "plans", &rawdoc! {"_id": 1});
    served.put(at(2), "plans", &rawdoc! {"_id": 2});
    served.commit(at(2));
    served
}

#[tokio::test]
async fn parameters_that_make_no_sense_are_refused_by_name() {
    let served = filled().await;
    let long = format!("since={}", "A".repeat(28 * 1024));
    for (query, code) in [
        ("since[$gt]=0", "invalid_since"),
        ("since%5B%24gt%5D=0", "invalid_since"),
        ("since[]=0", "invalid_since"),
        ("since=0&since=0", "invalid_since"),
        ("since=%00", "invalid_since"),
        ("since=0%00", "invalid_since"),
        ("since=99999-01-01T00:00:00Z", "invalid_since"),
        ("since=9999-01-01T00:00:00Z", "invalid_since"),
        ("since=2026-13-01T00:00:00Z", "invalid_since"),
        ("since=2026-01-01", "invalid_since"),
        ("since=-1", "invalid_since"),
        ("since=1", "invalid_since"),
        ("since=null", "invalid_since"),
        ("since={\"$gt\":\"\"}", "invalid_since"),
        ("since=%ff%fe", "invalid_since"),
        ("since=%F0%9F%8C%8A", "invalid_since"),
        ("since=AAAAAAAAAAAAAAAAAAAA", "invalid_since"),
        (long.as_str(), "invalid_since"),
        ("limit=0", "invalid_limit"),
        ("limit=-1", "invalid_limit"),
        ("limit=1000000000", "invalid_limit"),
        ("limit=1e9", "invalid_limit"),
        ("limit=10001", "invalid_limit"),
        ("limit=%00", "invalid_limit"),
        ("limit=1&limit=2", "invalid_limit"),
        ("wait=61", "invalid_wait"),
        ("wait=-1", "invalid_wait"),
        ("wait=x", "invalid_wait"),
        ("format=bson", "invalid_format"),
        ("collections=nothing", "unknown_collection"),
        ("collections=", "unknown_collection"),
        ("collections=plans,", "unknown_collection"),
        ("collections=Plans", "unknown_collection"),
        ("collections=system.users", "unknown_collection"),
        ("collections=plans%00", "unknown_collection"),
        ("collections=%1b[31mred", "unknown_collection"),
    ] {
        let answer = served.get_as("ann", &format!("/api/sync/pull?{query}")).await;
        let body = refused(answer, 400, code, query).await;
        let text = body.to_string();
        assert!(!text.contains('\u{1b}') && text.len() < 1_000, "{text}");
    }
    assert_eq!(served.pull("ann", "").await["count"], 2, "and nothing was lost");
}

#[tokio::test]
async fn a_forged_or_cut_cursor_is_refused_or_harmless_and_never_a_failure() {
    let served = filled().await;
    let page = served.pull("ann", "limit=1").await;
    let cursor = page["cursor"].as_str().unwrap().to_owned();
    assert_eq!(page["complete"], false, "a cursor inside a first copy has the most to forge");
    for cut in 0..cursor.len() {
        let answer =
            served.get_as("ann", &format!("/api/sync/pull?since={}", &cursor[..cut])).await;
        assert!(matches!(answer.status().as_u16(), 200 | 400 | 410), "{cut}: {}", answer.status());
    }
    let alphabet = b"Az09-_";
    for at in 0..cursor.len() {
        for &letter in alphabet {
            let mut forged = cursor.clone().into_bytes();
            forged[at] = letter;
            let forged = String::from_utf8(forged).unwrap();
            let answer = served.get_as("ann", &format!("/api/sync/pull?since={forged}")).await;
            assert!(
                matches!(answer.status().as_u16(), 200 | 400 | 410),
                "{forged}: {}",
                answer.status()
            );
        }
    }
}

#[tokio::test]
async fn a_cursor_from_inside_another_logs_first_copy_starts_again() {
    let (one, other) = (filled().await, filled().await);
    let cursor = one.pull("ann", "limit=1").await["cursor"].as_str().unwrap().to_owned();
    let answer = other.get_as("ann", &format!("/api/sync/pull?since={cursor}")).await;
    let body = refused(answer, 410, "resync_required", "foreign").await;
    assert_eq!(body["error"]["reason"], "foreign_log");
}

#[tokio::test]
async fn without_a_good_token_nothing_is_told() {
    let served = filled().await;
    let ask = |path: &str| served.http.get(format!("{}{path}", served.url));
    let good = sign(SECRET, &Claims::of("ann")).unwrap();
    let foreign = sign("another secret, as long as it must be", &Claims::of("ann")).unwrap();
    let more = |name: &str, value: Value| {
        let more = Map::from_iter([(name.to_owned(), value)]);
        sign(SECRET, &Claims { more, ..Claims::of("ann") }).unwrap()
    };
    for path in ["/api/sync/pull", "/api/sync/status"] {
        let in_url =
            format!("{path}?access_token={good}&token={good}&authorization=Bearer%20{good}");
        let answers = [
            ("no token", ask(path)),
            ("a token in the URL", ask(&in_url)),
            ("not bearer", ask(path).basic_auth("ann", Some("x"))),
            ("garbage", ask(path).bearer_auth("garbage")),
            ("foreign key", ask(path).bearer_auth(&foreign)),
            ("two headers", ask(path).bearer_auth(&good).bearer_auth(&good)),
            ("no sub", ask(path).bearer_auth(more("sub", json!(7)))),
            ("not yet", ask(path).bearer_auth(more("nbf", json!(9_999_999_999_u64)))),
            ("exp of the wrong kind", ask(path).bearer_auth(more("exp", json!("9999999999")))),
            ("bytes", ask(path).header("authorization", &b"Bearer \xff\xfe"[..])),
        ];
        for (what, ask) in answers {
            let body = refused(ask.send().await.unwrap(), 401, "unauthenticated", what).await;
            assert!(!body.to_string().contains(&good[..20]), "{what}: {body}");
        }
        let expired = ask(path).bearer_auth(more("exp", json!(1))).send().await.unwrap();
        refused(expired, 401, "token_expired", "expired").await;
        // Refused for its token and not for its parameters: a stranger learns nothing.
        let bad = ask(&format!("{path}?limit=0&collections=nothing")).send().await.unwrap();
        refused(bad, 401, "unauthenticated", "no token and bad parameters").await;
    }
}

#[tokio::test]
async fn a_good_token_that_may_see_nothing_is_told_so() {
    let served = filled().await;
    let answer = served.get_as("ann", "/api/sync/pull?collections=vault").await;
    refused(answer, 403, "forbidden", "vault").await;
    // Who does not know the name is not told the names beyond the own ones.
    let answer = served.get_as("ann", "/api/sync/pull?collections=nothing").await;
    let body = refused(answer, 400, "unknown_collection", "nothing").await;
    assert!(!body.to_string().contains("vault"), "{body}");
    assert!(body["error"]["remedy"].as_str().unwrap().contains("invoices, plans"), "{body}");
}

#[tokio::test]
async fn what_is_not_there_or_too_large_is_refused_with_the_same_body() {
    let served = filled().await;
    let url = |path: &str| format!("{}{path}", served.url);
    let http = &served.http;
    for path in ["/", "/api", "/api/sync/pull/", "/metrics", "/%1b%5b31m", "/..%2f..%2fetc/passwd"]
    {
        refused(http.get(url(path)).send().await.unwrap(), 404, "not_found", path).await;
    }
    for path in ["/api/sync/pull", "/api/sync/status", "/healthz"] {
        for ask in [http.post(url(path)), http.delete(url(path)), http.put(url(path))] {
            let answer = ask.send().await.unwrap();
            assert!(answer.headers()["allow"].to_str().unwrap().contains("GET"));
            refused(answer, 405, "method_not_allowed", path).await;
        }
    }
    let long = format!("/api/sync/pull?since={}", "A".repeat(40_000));
    refused(http.get(url(&long)).send().await.unwrap(), 414, "uri_too_long", "a long URL").await;
    let large = http.get(url("/healthz")).header("x-large", "x".repeat(20_000));
    refused(large.send().await.unwrap(), 431, "headers_too_large", "a large header").await;
    let many = (0..80).fold(http.get(url("/healthz")), |ask, n| ask.header(format!("x-{n}"), "x"));
    refused(many.send().await.unwrap(), 431, "headers_too_large", "many headers").await;
    let body = http.get(url("/healthz")).body(vec![b'x'; 100_000]);
    refused(body.send().await.unwrap(), 413, "payload_too_large", "a body").await;
}

#[tokio::test]
async fn nothing_is_served_while_the_first_copy_runs_and_its_progress_is_told() {
    let served = filled().await;
    served.status.send_modify(|status| {
        status.phase = SourcePhase::Copying;
        let progress = CopyProgress { documents: 30, documents_total: 120, first: true };
        status.copies.insert("plans".into(), progress);
    });
    for path in ["/api/sync/pull", "/readyz"] {
        let body = refused(served.get_as("ann", path).await, 503, "not_ready", path).await;
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("30 of about 120") && message.contains("25 %"), "{message}");
    }
    assert_eq!(served.get_as("ann", "/healthz").await.status(), 200);
    let status = crate::served::json(served.get_as("ann", "/api/sync/status").await).await;
    assert_eq!((&status["ready"], &status["source"]), (&json!(false), &json!("copying")));
}

#[tokio::test]
async fn a_log_that_is_whole_is_served_although_its_source_is_gone() {
    let served = filled().await;
    served.status.send_modify(|status| {
        status.phase = SourcePhase::Unreachable;
        status.trouble = Some("no primary at db7.internal".into());
    });
    assert_eq!(served.pull("ann", "").await["count"], 2);
    let body = refused(served.get_as("ann", "/readyz").await, 503, "not_ready", "readyz").await;
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("can't be reached"), "{message}");
    assert!(!message.contains("internal"), "strangers see this: {message}");
    served.status.send_modify(|status| status.phase = SourcePhase::Refused);
    assert_eq!(served.pull("ann", "").await["count"], 2);
    let body = refused(served.get_as("ann", "/readyz").await, 503, "not_ready", "readyz").await;
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("refuses our user") && !message.contains("internal"), "{message}");
    // But not one whose first copy had only begun.
    served.status.send_modify(|status| {
        status.copies.insert("plans".into(), CopyProgress::default());
    });
    let answer = served.get_as("ann", "/api/sync/pull").await;
    refused(answer, 503, "not_ready", "half a copy").await;
}

#[tokio::test]
async fn the_operators_page_and_metrics_tell_the_state_and_escape_what_they_show() {
    let served = filled().await;
    served.pull("ann", "").await;
    served.status.send_modify(|status| {
        status.trouble = Some("<script>alert(1)</script>\u{1b}[31m".into());
    });
    let get = async |path: &str| {
        let answer = served.http.get(format!("{}{path}", served.admin_url)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.text().await.unwrap()
    };
    let page = get("/").await;
    assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"), "{page}");
    assert!(!page.contains('\u{1b}') && page.contains("plans"), "{page}");
    let metrics = get("/metrics").await;
    for line in ["tidewire_pages_total 1", "tidewire_changes_served_total 2", "tidewire_ready 1"] {
        assert!(metrics.lines().any(|l| l == line), "{line}\n{metrics}");
    }
    assert!(metrics.contains("tidewire_requests_total{status=\"200\"}"), "{metrics}");
}

#[tokio::test]
async fn who_floods_is_told_to_wait_whatever_it_asks_and_nobody_else_is() {
    let rate = Rate { per_second: 1, burst: 3 };
    let mut served = Served::start_with(|parts| parts.with_rate(rate)).await;
    served.put(at(1), "plans", &rawdoc! {"_id": 1});
    served.commit(at(1));
    for path in ["/api/sync/pull", "/api/sync/status"] {
        let mut answered = 0;
        let refusal = loop {
            let answer = served.get_as("ada", path).await;
            if answer.status() != 200 {
                break answer;
            }
            answered += 1;
            assert!(answered < 200, "{path}: a flood is served");
        };
        let body = refused(refusal, 429, "rate_limited", path).await;
        assert!(body["error"]["retryAfter"].as_u64().is_some_and(|seconds| seconds <= 2), "{body}");
    }
    let ada = sign(SECRET, &Claims::of("ada")).expect("a token");
    let open = async || Socket::connect(socket_request_as(&served.url, &ada)).await.err();
    let mut opened = 0;
    let status = loop {
        match open().await {
            Some(status) => break status,
            None => opened += 1,
        }
        assert!(opened < 200, "a flood of sockets is served");
    };
    assert_eq!(status, 429);
    // Whoever it says it comes for.
    let url = format!("{}/api/sync/pull", served.url);
    let mut statuses = Vec::new();
    for n in 0..9 {
        let asked = served.http.get(&url).bearer_auth(&ada);
        let asked = asked.header("x-forwarded-for", format!("10.0.0.{n}"));
        statuses.push(asked.send().await.expect("an answer").status().as_u16());
    }
    assert!(statuses.contains(&429), "{statuses:?}");
    served.pull("bob", "").await;
}

#[tokio::test]
async fn a_scrub_asked_for_by_a_query_that_makes_no_sense_is_refused_with_the_same_body() {
    let served = filled().await;
    let url = format!("{}/scrub?collections=plans&collections=vault", served.admin_url);
    let answer = served.http.post(url).send().await.expect("an answer");
    refused(answer, 400, "bad_request", "collections twice").await;
}
