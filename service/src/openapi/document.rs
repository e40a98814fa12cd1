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
    access::Scope,
    error::Error,
    problem::{self, Problem, Told},
};

/// The name under which the document speaks of bearer tokens.
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
        (name = "claims", description = "Claiming, and who has claimed"),
        (name = "coupons", description = "Coupons and their stock"),
    ),
    components(schemas(Problem<'static>)),
)]
struct Base;

/// What is the same whatever the routes are.
pub(crate) fn base() -> utoipa::openapi::OpenApi {
    let mut document = Base::openapi();
    let bearer = Http::builder()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "One of the service's own tokens, or a JSON Web Token. What an operation asks for is a scope \
             of the token: claim, read or admin. A JSON Web Token claims for its own subject only.",
        ))
        .build();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer));
    if let Some(RefOr::T(Schema::Object(problem))) = components.schemas.get_mut("Problem") {
        for field in ["code", "error"] {
            if let Some(RefOr::T(Schema::Object(code))) = problem.properties.get_mut(field) {
                code.enum_values = Some(problem::CODES.map(Into::into).into());
            }
        }
    }
    document
}

/// What a service has that is set up like this: whether nobody needs a token, and whether callers are
/// limited.
pub(crate) fn finish(document: &mut utoipa::openapi::OpenApi, open: bool, limited: bool) {
    if open && let Some(components) = &mut document.components {
        components.security_schemes.clear();
    }
    for item in document.paths.paths.values_mut() {
        let operations = [
            (&mut item.get, true),
            (&mut item.post, false),
            (&mut item.patch, false),
            (&mut item.delete, false),
        ];
        for (operation, is_safe) in operations {
            if let Some(operation) = operation {
                finish_operation(operation, is_safe, open, limited);
            }
        }
    }
}

/// Every answer that the document knows: the path, the method, the status.
pub(crate) fn answers(
    document: &utoipa::openapi::OpenApi,
) -> impl Iterator<Item = (&str, Method, StatusCode)> {
    document.paths.paths.iter().flat_map(|(path, item)| {
        let operations = [
            (Method::GET, &item.get),
            (Method::POST, &item.post),
            (Method::PATCH, &item.patch),
            (Method::DELETE, &item.delete),
        ];
        operations.into_iter().flat_map(move |(method, operation)| {
            let statuses = operation
                .iter()
                .flat_map(|operation| operation.responses.responses.keys());
            statuses.filter_map(move |status| {
                let status = status.parse().ok()?;
                Some((path.as_str(), method.clone(), status))
            })
        })
    })
}

fn finish_operation(operation: &mut Operation, is_safe: bool, open: bool, limited: bool) {
    if open {
        operation.security = None;
        operation.responses.responses.remove("401");
        operation.responses.responses.remove("403");
        if !is_safe {
            // What is left of it without tokens.
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
                "The request's id; its own, if it brought one",
            );
            if limited {
                add_header(
                    response,
                    "RateLimit",
                    Type::String,
                    "What is left to this caller",
                );
                add_header(
                    response,
                    "RateLimit-Policy",
                    Type::String,
                    "How often a caller may ask",
                );
            }
        }
    }
}

/// The responses of a route that may end with these errors, by status: made from the errors, so that
/// they say what is true.
pub(crate) fn problems(
    errors: impl IntoIterator<Item = Error>,
) -> BTreeMap<String, RefOr<Response>> {
    let said = || anyhow!("nothing that a client sees");
    let common = [
        Error::Unauthorized(None),
        Error::Forbidden(Scope::Read),
        Error::RateLimited(Duration::from_secs(1)),
        Error::Internal(said()),
        Error::Unavailable(said()),
        Error::TooManyRequests,
        Error::Timeout(said()),
    ];
    let mut by_status: BTreeMap<StatusCode, Vec<Error>> = BTreeMap::new();
    for error in errors.into_iter().chain(common) {
        by_status
            .entry(problem::told(&error).status)
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
            let Told { code, detail, .. } = problem::told(error);
            match error {
                Error::Invalid(_) => {
                    format!("`{code}`: `detail` names what is wrong with the request")
                }
                _ => format!("`{code}`: {detail}"),
            }
        })
        .collect();
    let examples = errors.iter().map(|error| {
        let Told { code, title, .. } = problem::told(error);
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
        .any(|error| matches!(error, Error::Unauthorized(_) | Error::Forbidden(_)));
    match status {
        _ if is_about_tokens => add_header(
            &mut response,
            "WWW-Authenticate",
            Type::String,
            "What is missing, as in RFC 6750",
        ),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => add_header(
            &mut response,
            "Retry-After",
            Type::Integer,
            "When to ask again, in seconds",
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
