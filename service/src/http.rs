//! The HTTP interface: the routers, and the state that the routes share.

mod assets;
mod extract;
mod fast_path;
mod json;
mod layers;
mod openapi;
pub(crate) mod problem;
mod routes;
mod server;
mod state;

use std::time::Duration;

use axum::{
    Router,
    extract::FromRef,
    handler::Handler as _,
    http::{Method, StatusCode},
};
use tower_layer::Layer as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use self::{
    extract::body::{BodyTimeout, LargeBodies},
    fast_path::FastPath,
    layers::{admission::Admission, origins::Cors, permits::RequestPermits, stack::Stack},
    routes::claims::{CLAIM_PATH, claim},
    state::{AppState, HoldTtl, Parts},
};
pub use self::{
    layers::{
        admission::RequestLimits,
        client_address::TrustedProxies,
        origins::AllowedOrigins,
        rate_limit::{Rate, RateLimit, RateLimitKey},
    },
    server::{
        ConnectionLimits, HttpService, check_queue_limit, listen, raise_file_limit, runtime, serve,
    },
};
use crate::{
    auth::Policy, database::Database, error::Error, events::Events, health::Health, lanes::Lanes,
    shards::Shards, telemetry::metrics::metrics,
};

/// The parts behind the HTTP interface.
#[derive(Debug)]
pub struct App {
    /// Databases, for everything that takes no lane.
    pub databases: Shards<Database>,
    /// Lanes, for claims, holds and releases.
    pub lanes: Shards<Lanes>,
    /// Events, for streams.
    pub events: Events,
    /// Health of the shards.
    pub health: Shards<Health>,
    /// Accepted tokens.
    pub policy: Policy,
    /// Time for which a piece is held if the request names none.
    pub hold_ttl: Duration,
    /// Limits of requests.
    pub limits: RequestLimits,
    /// Origins of web pages that may use the API.
    pub origins: AllowedOrigins,
    /// True if `/metrics` is among the routes.
    pub metrics: bool,
}

/// Makes the routes of the whole interface.
///
/// # Errors
/// The description cannot be written, which is a defect.
pub fn routes(app: App) -> anyhow::Result<impl HttpService> {
    let App {
        databases,
        lanes,
        events,
        health,
        policy,
        hold_ttl,
        limits,
        origins,
        metrics: has_metrics,
    } = app;
    let permits = RequestPermits::new(limits.in_progress);
    let state = AppState::from(Parts {
        databases,
        lanes,
        events,
        health,
        policy: policy.clone(),
        hold_ttl: HoldTtl(hold_ttl),
        body_timeout: BodyTimeout(limits.body_timeout),
        large_bodies: LargeBodies::default(),
        permits: permits.clone(),
    });
    let (mut router, mut document) = described();
    openapi::finish(&mut document, policy.is_open(), limits.rate_limit.is_some());
    for (route, method, status) in openapi::answers(&document) {
        metrics().preset(route, &method, status);
    }
    let cors = Cors::new(origins, &openapi::methods(&document));
    if has_metrics {
        router = router.merge(routes::metrics::routes());
    }
    let router = router.merge(assets::routes(&document)?);
    let admission = Admission::new(policy, cors, limits, permits);
    Ok(FastPath {
        claim: Stack::of_route(admission.clone(), CLAIM_PATH)
            .layer(claim.with_state(state.clone())),
        router: with_stack(router, admission).with_state(state),
    })
}

/// Makes the router of `/metrics` alone.
pub fn metrics_router(databases: Shards<Database>, lanes: Shards<Lanes>) -> Router {
    #[derive(Clone, FromRef)]
    struct MetricsState {
        databases: Shards<Database>,
        lanes: Shards<Lanes>,
    }
    let limits = RequestLimits::default();
    let permits = RequestPermits::new(limits.in_progress);
    let cors = Cors::new(AllowedOrigins::default(), &[]);
    let admission = Admission::new(Policy::default(), cors, limits, permits);
    with_stack(routes::metrics::routes(), admission).with_state(MetricsState { databases, lanes })
}

/// Makes the routes of the API without layers, to measure their cost.
pub fn bare_routes(app: App) -> impl HttpService {
    let state = AppState::from(Parts {
        databases: app.databases,
        lanes: app.lanes,
        events: app.events,
        health: app.health,
        policy: app.policy,
        hold_ttl: HoldTtl(app.hold_ttl),
        body_timeout: BodyTimeout(app.limits.body_timeout),
        large_bodies: LargeBodies::default(),
        permits: RequestPermits::new(app.limits.in_progress),
    });
    FastPath {
        claim: claim.with_state(state.clone()),
        router: described().0.with_state(state),
    }
}

/// The routes of the API, with their description, and those of health.
fn described() -> (Router<AppState>, OpenApi) {
    let (router, document) = OpenApiRouter::with_openapi(openapi::base())
        .merge(routes::coupons::routes())
        .merge(routes::stock::routes())
        .merge(routes::claims::routes())
        .merge(routes::events::routes())
        .merge(routes::holds::routes())
        .merge(routes::users::routes())
        .split_for_parts();
    (router.merge(routes::health::routes()), document)
}

/// Adds the answers to unknown paths and methods, and the layers around all routes.
fn with_stack<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    admission: Admission,
) -> Router<S> {
    router
        .fallback(async || Error::RouteNotFound)
        .method_not_allowed_fallback(other_method)
        .layer(Stack::of_router(admission))
}

/// Answers a method that the path does not take. The router adds `Allow`.
async fn other_method(method: Method) -> Result<StatusCode, Error> {
    if method == Method::OPTIONS {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Error::MethodNotAllowed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::{body::Body, extract::Request, response::Response, routing::get};
    use tower_service::Service;

    use super::*;
    use crate::auth::Tokens;

    const SHOP: (&str, &str) = ("origin", "https://shop.example");
    const ASKED: (&str, &str) = ("access-control-request-method", "POST");
    const TOKEN: (&str, &str) = ("authorization", "Bearer 0123456789abcdef");

    fn router(origins: &[&str]) -> Router {
        limited_router(origins, RateLimitKey::Address)
    }

    /// A router with a route that needs a token, a rate limit of 100, and these origins of pages.
    fn limited_router(origins: &[&str], key: RateLimitKey) -> Router {
        let policy = Policy::new(Tokens::parse("0123456789abcdef:read").unwrap(), None);
        let origins: Vec<_> = origins.iter().copied().map(ToOwned::to_owned).collect();
        let origins = AllowedOrigins::parse(&origins).unwrap();
        let limits = RequestLimits {
            rate_limit: Some(RateLimit::new("100/h".parse().unwrap(), key)),
            ..RequestLimits::default()
        };
        let cors = Cors::new(origins, &[Method::GET, Method::POST]);
        let admission = Admission::new(policy, cors, limits, RequestPermits::new(10));
        let vary = ("vary", "accept-encoding");
        let route = get(async move || [vary]);
        with_stack(Router::new().route("/api/coupons", route), admission)
    }

    async fn send(
        router: &Router,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in [("host", "here")].iter().chain(headers) {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        router.clone().call(request).await.unwrap()
    }

    #[tokio::test]
    async fn only_preflights_need_no_token_and_they_pass_all_other_checks() {
        let (open, closed) = (router(&["https://shop.example"]), router(&[]));
        let path = "/api/coupons";
        for (router, path, headers, status) in [
            (&open, path, &[SHOP, ASKED][..], 204),
            (&open, path, &[("origin", "null"), ASKED], 204),
            (&open, "/nothing", &[SHOP, ASKED], 404),
            (&open, path, &[SHOP, ASKED, ("host", "other")], 400),
            // No preflights.
            (&open, path, &[], 401),
            (&open, path, &[SHOP], 401),
            (&open, path, &[ASKED], 401),
            (&open, path, &[TOKEN], 204),
            (&open, "/nothing", &[], 404),
            (&open, path, &[("host", "other")], 400),
            (&closed, path, &[SHOP, ASKED], 401),
            (&closed, path, &[SHOP, ASKED, TOKEN], 204),
        ] {
            let answer = send(router, Method::OPTIONS, path, headers).await;
            assert_eq!(answer.status().as_u16(), status, "{path} {headers:?}");
            assert!(answer.headers().contains_key("x-request-id"), "{headers:?}");
        }
        // A request with a preflight's headers is none.
        let answer = send(&open, Method::GET, path, &[SHOP, ASKED]).await;
        assert_eq!(answer.status(), 401);
        for _ in 0..100 {
            send(&open, Method::OPTIONS, path, &[SHOP, ASKED]).await;
        }
        let by_token = limited_router(&["https://shop.example"], RateLimitKey::Token);
        for _ in 0..101 {
            let answer = send(&by_token, Method::OPTIONS, path, &[SHOP, ASKED]).await;
            assert_eq!(answer.status(), 204);
        }
        let answer = send(&open, Method::OPTIONS, path, &[SHOP, ASKED]).await;
        assert_eq!(answer.status(), 429);
        assert_eq!(
            answer.headers()["access-control-allow-origin"],
            "https://shop.example"
        );
    }

    #[tokio::test]
    async fn pages_of_listed_origins_may_read_every_answer() {
        let evil = ("origin", "https://evil.example");
        let (listed, all, none) = (
            router(&["https://shop.example"]),
            router(&["*"]),
            router(&[]),
        );
        let (shop, star) = (Some("https://shop.example"), Some("*"));
        for (router, page, allowed, vary) in [
            (&listed, Some(SHOP), shop, 1),
            (&listed, Some(evil), None, 1),
            (&listed, None, None, 1),
            (&all, Some(evil), star, 0),
            (&all, None, star, 0),
            (&none, Some(SHOP), None, 0),
        ] {
            for (token, status) in [(Some(TOKEN), 200), (None, 401)] {
                let headers: Vec<_> = page.into_iter().chain(token).collect();
                let answer = send(router, Method::GET, "/api/coupons", &headers).await;
                let case = format!("{page:?} {status}");
                assert_eq!(answer.status(), status, "{case}");
                let value = |name| answer.headers().get(name).map(|it| it.to_str().unwrap());
                assert_eq!(value("access-control-allow-origin"), allowed, "{case}");
                let readable = value("access-control-expose-headers").unwrap_or_default();
                assert_eq!(
                    readable.contains("retry-after"),
                    allowed.is_some(),
                    "{case}"
                );
                assert_eq!(value("access-control-allow-methods"), None, "{case}");
                // Beside the route's own.
                let varies: Vec<_> = answer.headers().get_all("vary").iter().collect();
                let count = |name| varies.iter().filter(|it| **it == name).count();
                let own = usize::from(status == 200);
                assert_eq!(
                    (count("accept-encoding"), count("origin")),
                    (own, vary),
                    "{case}"
                );
            }
        }
        let answer = send(&listed, Method::OPTIONS, "/api/coupons", &[SHOP, ASKED]).await;
        for (name, value) in [
            ("access-control-allow-origin", "https://shop.example"),
            ("access-control-allow-methods", "GET,POST"),
            ("access-control-max-age", "3600"),
            ("allow", "GET,HEAD"),
        ] {
            assert_eq!(answer.headers()[name], value, "{name}");
        }
        let sent = answer.headers()["access-control-allow-headers"].to_str();
        assert!(sent.unwrap().contains("authorization"));
        let refused = send(&listed, Method::OPTIONS, "/api/coupons", &[evil, ASKED]).await;
        assert!(
            !refused
                .headers()
                .contains_key("access-control-allow-origin")
        );
        assert!(
            !refused
                .headers()
                .contains_key("access-control-allow-methods")
        );
    }
}
