//! Bad input: each case is refused with an answer that names the fault, and nothing is written.

use anyhow::Result;
use reqwest::Method;

use crate::fixtures::{
    api::{Api, answer},
    sql::rows,
};

const CREATE: &str = "/api/coupons";
const CLAIM: &str = "/api/coupons/claim";

struct Case {
    method: Method,
    path: String,
    body: Vec<u8>,
    expected: &'static str,
    /// A part of the expected detail.
    detail: &'static str,
}

#[tokio::test]
async fn bad_input_is_refused_and_writes_nothing() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    database.create_coupon("PROMO", 5).await?;
    let client = database.connect().await?;
    let before = rows(&client).await?;
    let cases = cases();
    assert!(cases.len() >= 40);
    for Case {
        method,
        path,
        body,
        expected,
        detail,
    } in cases
    {
        let start = String::from_utf8_lossy(&body)
            .chars()
            .take(80)
            .collect::<String>();
        let case = format!("{method} {path} {start}");
        let answer = answer(api.request(method, &path).body(body)).await?;
        assert_eq!(answer.shown(), expected, "{case}: {answer:?}");
        let said = answer.body["detail"].as_str().unwrap_or_default();
        assert!(said.contains(detail), "{case}: {said}");
        assert_eq!(rows(&client).await?, before, "{case}");
    }
    database.books().await
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |method: &Method, path: &str, body: &[u8], expected, detail| {
        let (method, path, body) = (method.clone(), path.to_owned(), body.to_vec());
        cases.push(Case {
            method,
            path,
            body,
            expected,
            detail,
        });
    };
    let bad = "400 invalid_request";
    let deep = 100_000;

    // Bodies that are not JSON objects, for both routes that take a body.
    for path in [CREATE, CLAIM] {
        for body in [
            "",
            " ",
            "null",
            "true",
            "17",
            r#""PROMO""#,
            "[]",
            r#"["user","PROMO"]"#,
            r#"["PROMO",5]"#,
            "name=PROMO&amount=5",
            "<xml/>",
            "\u{feff}{}",
        ] {
            case(&Method::POST, path, body.as_bytes(), bad, "JSON object");
        }
        for body in [
            "{",
            "{}}",
            "{]",
            r#"{"name"}"#,
            r#"{"name":}"#,
            r#"{"name":"a" "amount":1}"#,
            r#"{'name':'a'}"#,
            r#"{"name":"a","name":"b","amount":1,"user_id":"a","user_id":"b"}"#,
            r#"{"name":"a","amount":1} {}"#,
            r#"{"name":"a","amount":01}"#,
            r#"{"amount":NaN,"user_id":NaN}"#,
            "{\"name\":\"a",
        ] {
            // The other route does not know this field.
            case(&Method::POST, path, body.as_bytes(), bad, "the body ");
        }
        let nested = "[".repeat(30_000);
        case(&Method::POST, path, nested.as_bytes(), bad, "JSON object");
        let nested = format!(r#"{{"name":{nested}"#);
        case(&Method::POST, path, nested.as_bytes(), bad, "the body ");
        case(
            &Method::POST,
            path,
            b"{\"name\":\"\xff\",\"user_id\":\"\xff\"}",
            bad,
            "",
        );
    }

    // The fields of a coupon.
    let create = |name: &str, amount: &str| format!(r#"{{"name":{name},"amount":{amount}}}"#);
    for amount in [
        "0",
        "-1",
        "-0",
        "1.5",
        "1.0",
        "1e1",
        "2147483648",
        "9223372036854775808",
        "1e400",
        r#""5""#,
        r#""five""#,
        "true",
        "[5]",
        r#"{"n":5}"#,
    ] {
        let body = create(r#""NEW""#, amount);
        case(
            &Method::POST,
            CREATE,
            body.as_bytes(),
            bad,
            "amount must be a whole number",
        );
    }
    case(
        &Method::POST,
        CREATE,
        create(r#""NEW""#, "null").as_bytes(),
        bad,
        "amount is required",
    );
    case(
        &Method::POST,
        CREATE,
        br#"{"name":"NEW"}"#,
        bad,
        "amount is required",
    );
    case(
        &Method::POST,
        CREATE,
        br#"{"name":"NEW","Amount":5}"#,
        bad,
        "`Amount`",
    );
    case(
        &Method::POST,
        CREATE,
        br#"{"amount":5}"#,
        bad,
        "name is required",
    );
    case(&Method::POST, CREATE, b"{}", bad, "name is required");

    // Unknown fields, and windows that are not valid.
    for (body, detail) in [
        (
            r#"{"name":"NEW","amount":5,"start_at":"2999-01-01T00:00:00Z"}"#,
            "`start_at`",
        ),
        (r#"{"name":"NEW","amount":5,"amout":5}"#, "`amout`"),
        (r#"{"name":"NEW","amount":5,"Ends_at":null}"#, "`Ends_at`"),
        (r#"{"name":"NEW","amount":5,"paused":true}"#, "`paused`"),
        (r#"{"name":"NEW","amount":5,"":1}"#, "unknown field ``"),
        (
            r#"{"name":"NEW","amount":5,"starts_at":null,"starts_at":null}"#,
            "`starts_at`",
        ),
        (r#"{"name":".","amount":5}"#, "name must not be . or .."),
        (r#"{"name":"..","amount":5}"#, "name must not be . or .."),
        (
            r#"{"name":"\u002e.","amount":5}"#,
            "name must not be . or ..",
        ),
        (
            r#"{"name":"NEW","amount":5,"starts_at":"2999-01-01T12:00:00Z","ends_at":"2999-01-01T13:00:00+01:00"}"#,
            "ends_at must be after starts_at",
        ),
        (
            r#"{"name":"NEW","amount":5,"starts_at":"2999-01-01T12:00:00Z","ends_at":"2999-01-01T11:59:59Z"}"#,
            "ends_at must be after starts_at",
        ),
    ] {
        case(&Method::POST, CREATE, body.as_bytes(), bad, detail);
    }
    case(
        &Method::POST,
        CLAIM,
        br#"{"user_id":"user","coupon_name":"PROMO","amount":2}"#,
        bad,
        "`amount`",
    );
    for moment in [
        r#""2026-11-27""#,
        r#""2026-11-27T12:00:00""#,
        r#""2026-11-27 12:00:00+00""#,
        r#""2026-11-27T12:00:60Z""#,
        r#""2016-12-31T23:59:60Z""#,
        r#""infinity""#,
        r#""-infinity""#,
        r#""now""#,
        r#""""#,
        "1795780800",
        "true",
        r#"["2026-11-27T12:00:00Z"]"#,
        r#""9999-12-31T23:59:59-01:00""#,
    ] {
        for field in ["starts_at", "ends_at"] {
            let body = format!(r#"{{"name":"NEW","amount":5,"{field}":{moment}}}"#);
            let detail = match field {
                "starts_at" => "starts_at must be a moment",
                _ => "ends_at must be a moment",
            };
            case(&Method::POST, CREATE, body.as_bytes(), bad, detail);
        }
    }

    // Every field that is a text.
    let nested = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    let long = format!(r#""{}""#, "x".repeat(256));
    let long_wide = format!(r#""{}""#, "🎟".repeat(256));
    let texts = [
        ("null", "is required"),
        (r#""""#, "must not be empty"),
        ("17", "must be a string"),
        ("false", "must be a string"),
        (r#"["a"]"#, "must be a string"),
        (r#"{"a":"b"}"#, "must be a string"),
        (r#""\ud800""#, "must be a string"),
        (r#""\u0000""#, "NUL"),
        (r#""a\u0000b""#, "NUL"),
        (&long, "255 characters"),
        (&long_wide, "255 characters"),
        (&nested, "must be a string"),
    ];
    for (text, detail) in texts {
        case(
            &Method::POST,
            CREATE,
            create(text, "5").as_bytes(),
            bad,
            "name ",
        );
        case(
            &Method::POST,
            CREATE,
            create(text, "5").as_bytes(),
            bad,
            detail,
        );
        let user = format!(r#"{{"user_id":{text},"coupon_name":"PROMO"}}"#);
        case(&Method::POST, CLAIM, user.as_bytes(), bad, "user_id ");
        case(&Method::POST, CLAIM, user.as_bytes(), bad, detail);
        let coupon = format!(r#"{{"user_id":"user","coupon_name":{text}}}"#);
        case(&Method::POST, CLAIM, coupon.as_bytes(), bad, "coupon_name ");
        case(&Method::POST, CLAIM, coupon.as_bytes(), bad, detail);
    }
    case(
        &Method::POST,
        CLAIM,
        br#"{"user_id":"user"}"#,
        bad,
        "coupon_name is required",
    );
    case(
        &Method::POST,
        CLAIM,
        br#"{"coupon_name":"PROMO"}"#,
        bad,
        "user_id is required",
    );

    // Bodies that are too large, with any content.
    let padding = " ".repeat(64 * 1024);
    let padded = format!(r#"{{"name":"NEW","amount":5}}{padding}"#);
    case(
        &Method::POST,
        CREATE,
        padded.as_bytes(),
        "413 payload_too_large",
        "64 KiB",
    );
    let padded = format!(r#"{padding}{{"user_id":"user","coupon_name":"PROMO"}}"#);
    case(
        &Method::POST,
        CLAIM,
        padded.as_bytes(),
        "413 payload_too_large",
        "64 KiB",
    );
    let nested = "[".repeat(deep);
    case(
        &Method::POST,
        CLAIM,
        nested.as_bytes(),
        "413 payload_too_large",
        "64 KiB",
    );

    // Names that no coupon can have.
    for name in [
        "none",
        "%00",
        "a%00b",
        "%FF",
        "%C0%80",
        "%ED%A0%80",
        "%",
        "%zz",
        "PROMO%20",
        "%50ROMO%00",
    ] {
        case(
            &Method::GET,
            &format!("{CREATE}/{name}"),
            b"",
            "404 coupon_not_found",
            "",
        );
    }
    let long = "x".repeat(256);
    case(
        &Method::GET,
        &format!("{CREATE}/{long}"),
        b"",
        "404 coupon_not_found",
        "",
    );
    let long = "x".repeat(8000);
    case(
        &Method::GET,
        &format!("{CREATE}/{long}"),
        b"",
        "404 coupon_not_found",
        "",
    );

    // Paths and methods that do not exist.
    for path in [
        "/",
        "/api",
        "/api/",
        "/api/coupons/",
        "/api/coupons/PROMO/x",
        "/API/coupons/PROMO",
    ] {
        case(&Method::GET, path, b"", "404 route_not_found", "");
        case(&Method::POST, path, b"{}", "404 route_not_found", "");
    }
    for method in [Method::PUT, Method::DELETE, Method::PATCH, Method::TRACE] {
        case(&method, CREATE, b"{}", "405 method_not_allowed", "");
    }
    for method in [Method::POST, Method::PUT, Method::TRACE] {
        case(
            &method,
            "/api/coupons/PROMO",
            b"{}",
            "405 method_not_allowed",
            "",
        );
    }
    case(&Method::PUT, CLAIM, b"", "405 method_not_allowed", "");

    // Lists: wrong parameters are named, even if the coupon does not exist.
    let long = "x".repeat(256);
    for list in [
        CREATE,
        "/api/coupons/PROMO/claims",
        "/api/coupons/none/claims",
    ] {
        for (query, detail) in [
            ("limit=0", "limit must be a whole number from 1 to 1000"),
            ("limit=1001", "limit must be"),
            ("limit=ten", "limit must be"),
            ("limit=", "limit must be"),
            ("after=-1", "after must be a whole number from 0"),
            ("after=9223372036854775808", "after must be"),
            ("after=1&after=2", "after is given twice"),
            ("offset=1", "\"offset\""),
            ("limit=1&%00", "no query parameter"),
            ("after=%FC", "after must be valid UTF-8"),
        ] {
            case(&Method::GET, &format!("{list}?{query}"), b"", bad, detail);
        }
    }
    for list in ["/api/coupons/PROMO/holds", "/api/events"] {
        let path = format!("{list}?after=%FC");
        case(&Method::GET, &path, b"", bad, "after must be valid UTF-8");
    }
    let path = "/api/users/m%FC/claims";
    case(&Method::GET, path, b"", bad, "user_id must be valid UTF-8");
    let path = "/api/coupons/PROMO?claims=%FC";
    case(
        &Method::DELETE,
        path,
        b"",
        bad,
        "claims must be valid UTF-8",
    );
    for (name, expected) in [
        ("none", "404 coupon_not_found"),
        ("%00", "404 coupon_not_found"),
        ("%FF", "404 coupon_not_found"),
        (long.as_str(), "404 coupon_not_found"),
    ] {
        case(
            &Method::GET,
            &format!("{CREATE}/{name}/claims"),
            b"",
            expected,
            "",
        );
        case(
            &Method::GET,
            &format!("{CREATE}/{name}/claims/user"),
            b"",
            expected,
            "",
        );
    }
    for user in ["nobody", "%00", &long] {
        let path = format!("{CREATE}/PROMO/claims/{user}");
        case(&Method::GET, &path, b"", "404 claim_not_found", "");
    }
    cases
}

#[tokio::test]
async fn wrong_method_is_405_with_allow() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start(database.caller_url()).await?;
    for (path, allowed) in [
        (CREATE, "POST,GET,HEAD"),
        ("/api/coupons/PROMO", "GET,HEAD,PATCH,DELETE"),
        (CLAIM, "POST,GET,HEAD,PATCH,DELETE"),
        ("/api/coupons/PROMO/restock", "POST"),
        ("/api/coupons/PROMO/holds/user/confirm", "POST"),
    ] {
        let answer = answer(api.request(Method::PUT, path)).await?;
        assert_eq!(
            (answer.status, answer.header("allow")),
            (405, allowed),
            "{path}"
        );
    }
    Ok(())
}
