//! The OpenAPI document.

use std::{collections::BTreeMap, time::Duration};

use anyhow::anyhow;
use axum::http::{Method, StatusCode};
use utoipa::{
    OpenApi,
    openapi::{
        Content, ContentBuilder, Header, HeaderBuilder, ObjectBuilder, Ref, RefOr, Response,
        ResponseBuilder,
        example::ExampleBuilder,
        path::Operation,
        schema::{Schema, Type},
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

use crate::{
    auth::{Denied, Scope},
    error::Error,
    http::problem::{self, Entry, Problem},
    outcome::Outcome,
};

/// Name of the security scheme of bearer tokens.
const BEARER: &str = "bearer";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Honcho",
        description = "Flash-sale coupons inside PostgreSQL: never oversold, never twice, never lost.\n\n\
            Errors are `application/problem+json` (RFC 9457). Programs look at `code`.",
        license(name = "PostgreSQL License", identifier = "PostgreSQL"),
    ),
    tags(
        (name = "claims", description = "Claims and claimants"),
        (name = "coupons", description = "Coupons and their stock"),
        (name = "events", description = "Events of coupons, as server-sent events"),
        (name = "holds", description = "Pieces that are held while a user pays"),
    ),
    components(schemas(Problem<'static>)),
)]
struct Base;

/// Makes the document without routes.
pub(crate) fn base() -> utoipa::openapi::OpenApi {
    let mut document = Base::openapi();
    let bearer = Http::builder()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "One of the service's own tokens, or a JSON Web Token. Each operation names the scope that the token \
             needs: claim, read or admin. A JSON Web Token claims and holds for its own subject only.",
        ))
        .build();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer));
    if let Some(RefOr::T(Schema::Object(problem))) = components.schemas.get_mut("Problem") {
        for field in ["code", "error"] {
            if let Some(RefOr::T(Schema::Object(code))) = problem.properties.get_mut(field) {
                let codes = problem::codes().into_iter().map(Into::into);
                code.enum_values = Some(codes.collect());
            }
        }
    }
    document
}

/// Lists the operations of a path with their methods. It is the one place that knows a path's fields.
macro_rules! operations {
    ($item:expr, $iter:ident) => {
        [
            (Method::GET, $item.get.$iter()),
            (Method::HEAD, $item.head.$iter()),
            (Method::POST, $item.post.$iter()),
            (Method::PUT, $item.put.$iter()),
            (Method::PATCH, $item.patch.$iter()),
            (Method::DELETE, $item.delete.$iter()),
            (Method::OPTIONS, $item.options.$iter()),
            (Method::TRACE, $item.trace.$iter()),
        ]
        .into_iter()
        .flat_map(|(method, operation)| operation.map(move |operation| (method.clone(), operation)))
    };
}

/// Adapts the document to a service.
///
/// # Arguments
/// `open`: callers need no token. `limited`: there is a rate limit.
pub(crate) fn finish(document: &mut utoipa::openapi::OpenApi, open: bool, limited: bool) {
    if open && let Some(components) = &mut document.components {
        components.security_schemes.clear();
    }
    for item in document.paths.paths.values_mut() {
        for (method, operation) in operations!(item, iter_mut) {
            finish_operation(operation, method.is_safe(), open, limited);
        }
    }
}

/// Lists every answer in the document: path, method, status.
pub(crate) fn answers(
    document: &utoipa::openapi::OpenApi,
) -> impl Iterator<Item = (&str, Method, StatusCode)> {
    document.paths.paths.iter().flat_map(|(path, item)| {
        operations!(item, iter).flat_map(move |(method, operation)| {
            let statuses = operation.responses.responses.keys();
            statuses.filter_map(move |status| {
                let status = status.parse().ok()?;
                Some((path.as_str(), method.clone(), status))
            })
        })
    })
}

/// Lists the methods in the document, with HEAD, which every GET route takes.
pub(crate) fn methods(document: &utoipa::openapi::OpenApi) -> Vec<Method> {
    let mut methods = vec![Method::GET, Method::HEAD];
    for item in document.paths.paths.values() {
        for (method, _) in operations!(item, iter) {
            if !methods.contains(&method) {
                methods.push(method);
            }
        }
    }
    methods
}

fn finish_operation(operation: &mut Operation, is_safe: bool, open: bool, limited: bool) {
    if open {
        operation.security = None;
        operation.responses.responses.remove("401");
        operation.responses.responses.remove("403");
        if !is_safe {
            // The part of it that does not concern tokens.
            let foreign = response(StatusCode::FORBIDDEN, &[Error::ForeignOrigin]);
            operation
                .responses
                .responses
                .insert("403".to_owned(), foreign.into());
        }
    }
    if !limited {
        operation.responses.responses.remove("429");
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            add_header(
                response,
                "X-Request-Id",
                Type::String,
                "Id of the request; the client's own, if it sent one",
            );
            if limited {
                add_header(
                    response,
                    "RateLimit",
                    Type::String,
                    "Remaining requests of this caller",
                );
                add_header(
                    response,
                    "RateLimit-Policy",
                    Type::String,
                    "Rate limit of each caller",
                );
            }
        }
    }
}

/// Makes the responses of a route with these errors, by status.
pub(crate) fn problems(
    errors: impl IntoIterator<Item = Error>,
) -> BTreeMap<String, RefOr<Response>> {
    let cause = || anyhow!("not shown to clients");
    let common = [
        Denied::NoToken.into(),
        Denied::NoScope(Scope::Read).into(),
        Error::RateLimited(Duration::from_secs(1)),
        Error::Internal(cause()),
        Error::Unavailable(cause()),
        Error::TooManyRequests,
        Error::Timeout(cause()),
    ];
    let mut by_status: BTreeMap<StatusCode, Vec<Error>> = BTreeMap::new();
    for error in errors.into_iter().chain(common) {
        by_status
            .entry(problem::entry(&error).status)
            .or_default()
            .push(error);
    }
    by_status
        .into_iter()
        .map(|(status, errors)| {
            (
                status.as_u16().to_string(),
                response(status, &errors).into(),
            )
        })
        .collect()
}

fn response(status: StatusCode, errors: &[Error]) -> Response {
    let description: Vec<String> = errors
        .iter()
        .map(|error| {
            let Entry { code, detail, .. } = problem::entry(error);
            match error {
                Error::Invalid(_) => {
                    format!("`{code}`: `detail` names what is wrong with the request")
                }
                _ => format!("`{code}`: {detail}"),
            }
        })
        .collect();
    let examples = errors.iter().map(|error| {
        let Entry { code, title, .. } = problem::entry(error);
        let body = problem::body(error, "b2f6c0a1d3e4f586-1a");
        let example = ExampleBuilder::new()
            .summary(title)
            .value(serde_json::from_slice(&body).ok())
            .build();
        (code, example)
    });
    let content: Content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .examples_from_iter(examples)
        .build();
    let mut response = ResponseBuilder::new()
        .description(description.join("; "))
        .content("application/problem+json", content)
        .build();
    let is_about_tokens = errors
        .iter()
        .any(|error| matches!(error, Error::Denied(Denied::NoToken | Denied::NoScope(_))));
    match status {
        _ if is_about_tokens => add_header(
            &mut response,
            "WWW-Authenticate",
            Type::String,
            "The missing token or scope (RFC 6750)",
        ),
        StatusCode::CONFLICT
            if errors
                .iter()
                .any(|error| matches!(error, Error::Refused(Outcome::AllHeld))) =>
        {
            add_header(
                &mut response,
                "Retry-After",
                Type::Integer,
                "Time until the first hold expires, in seconds, if the code is all_held; absent otherwise",
            );
        }
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => add_header(
            &mut response,
            "Retry-After",
            Type::Integer,
            "Time until the next attempt, in seconds",
        ),
        _ => {}
    }
    response
}

fn add_header(response: &mut Response, name: &str, of_type: Type, description: &str) {
    let schema = ObjectBuilder::new().schema_type(of_type).build();
    let header: Header = HeaderBuilder::new()
        .schema(Some(schema))
        .description(Some(description))
        .build();
    response.headers.insert(name.to_owned(), header.into());
}
