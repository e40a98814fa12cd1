//! `/openapi.json`, and `/docs`: Swagger UI, whose files are part of this program. Nothing is loaded from
//! elsewhere.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use axum::{
    Router,
    body::Bytes,
    extract::Path,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
            IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use utoipa_swagger_ui::Config;

use crate::error::Error;

const JSON: &str = "application/json";

/// The routes of the description. Open to everybody: they tell nothing about coupons.
pub(crate) fn pages<S: Clone + Send + Sync + 'static>(
    document: &utoipa::openapi::OpenApi,
) -> Result<Router<S>, serde_json::Error> {
    let document = Page::new(JSON, document.to_pretty_json()?.into_bytes().into(), false);
    let ui = Arc::new(
        Config::from("/openapi.json")
            .validator_url("none")
            .display_request_duration(true)
            .persist_authorization(true),
    );
    let file = move |headers: HeaderMap, path: Option<Path<String>>| async move {
        let path = path.map_or_else(|| "index.html".to_owned(), |Path(path)| path);
        let file = utoipa_swagger_ui::serve(&path, ui)
            .map_err(|error| Error::Internal(anyhow::anyhow!("{error}")))?
            .ok_or(Error::RouteNotFound)?;
        let bytes = file.bytes.into_owned().into();
        Ok::<_, Error>(Page::new(&file.content_type, bytes, file.gzpipped).answer(&headers))
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

/// Something that changes only with the program.
#[derive(Clone)]
struct Page {
    headers: HeaderMap,
    bytes: Bytes,
}

impl Page {
    fn new(content_type: &str, bytes: Bytes, gzipped: bool) -> Self {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let mut headers = HeaderMap::new();
        let mut set = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set(CONTENT_TYPE, content_type);
        set(ETAG, &format!("\"{:016x}\"", hasher.finish()));
        // To be kept, and asked for again each time: another version may have been installed.
        set(CACHE_CONTROL, "no-cache");
        set(X_CONTENT_TYPE_OPTIONS, "nosniff");
        // What the page may load is what we serve. Swagger UI sets styles, and draws its icons.
        set(
            CONTENT_SECURITY_POLICY,
            "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
             frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        );
        if gzipped {
            set(CONTENT_ENCODING, "gzip");
        }
        Self { headers, bytes }
    }

    fn answer(&self, asked: &HeaderMap) -> Response {
        let known = asked.get(IF_NONE_MATCH).map(HeaderValue::as_bytes);
        if known.is_some() && known == self.headers.get(ETAG).map(HeaderValue::as_bytes) {
            return (StatusCode::NOT_MODIFIED, self.headers.clone()).into_response();
        }
        (self.headers.clone(), self.bytes.clone()).into_response()
    }
}
