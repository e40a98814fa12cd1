//! `/openapi.json`, and `/docs`: Swagger UI, whose files are part of this program. Nothing is loaded from elsewhere.

use std::{
    borrow::Cow,
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read},
    sync::{Arc, OnceLock},
};

use anyhow::anyhow;
use axum::{
    Router,
    body::Bytes,
    extract::Path,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY,
            CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use flate2::read::GzDecoder;
use utoipa_swagger_ui::Config;

use crate::error::Error;

const JSON: &str = "application/json";

/// The files of Swagger UI that the page loads.
const FILES: [&str; 8] = [
    "index.html",
    "index.css",
    "swagger-ui.css",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    "swagger-initializer.js",
    "favicon-16x16.png",
    "favicon-32x32.png",
];

/// The routes of the description. They need no token, because they say nothing about coupons.
///
/// # Errors
/// The description cannot be written, or a file of Swagger UI is missing or broken.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>(
    document: &utoipa::openapi::OpenApi,
) -> anyhow::Result<Router<S>> {
    let document = document.to_pretty_json()?.into_bytes().into();
    let document = Asset::new(JSON, document, false);
    let files = Arc::new(files()?);
    let file = move |headers: HeaderMap, path: Option<Path<String>>| async move {
        let path = path.as_ref().map_or("index.html", |Path(path)| path);
        let asset = files.get(path).ok_or(Error::RouteNotFound)?;
        asset.answer(&headers)
    };
    Ok(Router::new()
        .route(
            "/openapi.json",
            get(move |headers: HeaderMap| async move { document.answer(&headers) }),
        )
        .route("/docs", get(async || Redirect::permanent("/docs/")))
        .route("/docs/", get(file.clone()))
        .route("/docs/{*file}", get(file)))
}

/// The files under `/docs`, by the rest of their paths.
fn files() -> anyhow::Result<HashMap<&'static str, Asset>> {
    let ui = Arc::new(
        Config::from("/openapi.json")
            .validator_url("none")
            .display_request_duration(true)
            .persist_authorization(true),
    );
    FILES
        .into_iter()
        .map(|path| {
            let file = utoipa_swagger_ui::serve(path, Arc::clone(&ui))
                .map_err(|error| anyhow!("{path}: {error}"))?
                .ok_or_else(|| anyhow!("Swagger UI has no {path}"))?;
            let bytes = match file.bytes {
                Cow::Borrowed(bytes) => Bytes::from_static(bytes),
                Cow::Owned(bytes) => bytes.into(),
            };
            Ok((path, Asset::new(&file.content_type, bytes, file.gzpipped)))
        })
        .collect()
}

/// A file that changes only with the program. An answer copies none of its bytes.
#[derive(Clone)]
struct Asset {
    stored: Encoded,
    /// A gzipped file without compression; made when a client first requests it.
    unzipped: OnceLock<Encoded>,
}

/// A file in one encoding.
#[derive(Clone)]
struct Encoded {
    headers: HeaderMap,
    bytes: Bytes,
}

impl Asset {
    fn new(content_type: &str, bytes: Bytes, is_gzipped: bool) -> Self {
        let mut stored = Encoded::new(content_type, bytes);
        if is_gzipped {
            let headers = &mut stored.headers;
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        Self {
            stored,
            unzipped: OnceLock::new(),
        }
    }

    fn answer(&self, asked: &HeaderMap) -> Result<Response, Error> {
        let is_plain = !self.stored.headers.contains_key(CONTENT_ENCODING);
        let Encoded { headers, bytes } = if is_plain || takes_gzip(asked) {
            &self.stored
        } else {
            self.unzipped()
                .map_err(|error| Error::Internal(error.into()))?
        };
        let known = asked.get(IF_NONE_MATCH).map(HeaderValue::as_bytes);
        if known.is_some() && known == headers.get(ETAG).map(HeaderValue::as_bytes) {
            return Ok((StatusCode::NOT_MODIFIED, headers.clone()).into_response());
        }
        Ok((headers.clone(), bytes.clone()).into_response())
    }

    fn unzipped(&self) -> io::Result<&Encoded> {
        if let Some(unzipped) = self.unzipped.get() {
            return Ok(unzipped);
        }
        let mut bytes = Vec::new();
        GzDecoder::new(&*self.stored.bytes).read_to_end(&mut bytes)?;
        let bytes = Bytes::from(bytes);
        let mut headers = self.stored.headers.clone();
        headers.remove(CONTENT_ENCODING);
        headers.insert(ETAG, tag(&bytes));
        Ok(self.unzipped.get_or_init(|| Encoded { headers, bytes }))
    }
}

impl Encoded {
    fn new(content_type: &str, bytes: Bytes) -> Self {
        let mut headers = HeaderMap::new();
        let mut set = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set(CONTENT_TYPE, content_type);
        // Stored and revalidated each time: another version may have been installed.
        set(CACHE_CONTROL, "no-cache");
        set(X_CONTENT_TYPE_OPTIONS, "nosniff");
        // The page loads only files of this service. Swagger UI sets styles, and draws its icons.
        set(
            CONTENT_SECURITY_POLICY,
            "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
             frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        );
        headers.insert(ETAG, tag(&bytes));
        Self { headers, bytes }
    }
}

/// Makes the `ETag` of these bytes.
fn tag(bytes: &Bytes) -> HeaderValue {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish()))
        .unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// Returns true if `Accept-Encoding` allows gzip: by name or by `*`, with a weight other than 0.
fn takes_gzip(asked: &HeaderMap) -> bool {
    let values = asked.get_all(ACCEPT_ENCODING).into_iter();
    let codings = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    let mut by_any = false;
    for coding in codings {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().trim_start_matches(['q', 'Q']).trim_start();
        let is_allowed = weight.strip_prefix('=').is_none_or(|weight| {
            weight
                .trim()
                .parse::<f32>()
                .is_ok_and(|weight| weight > 0.0)
        });
        match name.trim() {
            name if name.eq_ignore_ascii_case("gzip") => return is_allowed,
            "*" => by_any = is_allowed,
            _ => {}
        }
    }
    by_any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_to_clients_that_accept_it() {
        for (accepted, expected) in [
            (None, false),
            (Some(""), false),
            (Some("identity"), false),
            (Some("gzip"), true),
            (Some("GZIP;q=0.1"), true),
            (Some("deflate, br;q=1.0, gzip ; q = 0.8"), true),
            (Some("gzip;q=0"), false),
            (Some("*;q=0.5, gzip;q=0.000"), false),
            (Some("br, *"), true),
            (Some("*;q=0"), false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accepted) = accepted {
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(accepted));
            }
            assert_eq!(takes_gzip(&headers), expected, "{accepted:?}");
        }
    }
}
