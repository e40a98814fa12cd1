//! Traces: requests are spans under their callers' spans, and batches are spans with links to their claims.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use axum::{Router, body::Bytes, extract::State, routing::post};
use honcho_tests::eventually;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message;
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinSet,
};

use crate::fixtures::{
    api::Api,
    held_coupon::{LONG_TIMEOUTS, hold, until_queued},
    scrape::Scrape,
};

/// An OpenTelemetry collector that keeps the exported spans.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

impl Collector {
    /// Listens for spans, and returns the URL.
    async fn listen(&self) -> Result<String> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let take = async |State(Self(exports)): State<Self>, body: Bytes| {
            let export = ExportTraceServiceRequest::decode(body).unwrap();
            exports.lock().unwrap().push(export);
        };
        let router = Router::new()
            .route("/v1/traces", post(take))
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(url)
    }

    fn spans(&self) -> Vec<Span> {
        let exports = self.0.lock().unwrap();
        let resources = exports.iter().flat_map(|export| &export.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| &scope.spans).cloned().collect()
    }

    fn service_name(&self) -> Option<String> {
        let exports = self.0.lock().unwrap();
        let resource = exports.first()?.resource_spans.first()?.resource.clone()?;
        text(&resource.attributes, "service.name")
    }
}

fn value(attributes: &[KeyValue], key: &str) -> Option<Value> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    attribute.value.clone()?.value
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match value(attributes, key)? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn number(attributes: &[KeyValue], key: &str) -> Option<i64> {
    match value(attributes, key)? {
        Value::IntValue(number) => Some(number),
        _ => None,
    }
}

/// The trace and span ids of a caller.
fn caller(n: usize) -> (String, String) {
    (
        format!("{:032x}", 0xabc0_u128 + n as u128),
        format!("{:016x}", 0xdef0 + n),
    )
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn requests_and_their_batches_are_spans() -> Result<()> {
    const CROWD: usize = 5;
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let collector = Collector::default();
    let endpoint = collector.listen().await?;
    let environment = [
        LONG_TIMEOUTS[0],
        LONG_TIMEOUTS[1],
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ];
    let api = Arc::new(Api::start_with(database.caller_url(), &environment).await?);
    let client = database.connect().await?;
    let holder = hold(&database, "PROMO").await?;

    // The first claim is alone in its batch and waits for the holder; the others gather behind it.
    let mut claims = JoinSet::new();
    let mut begin = |n: usize| {
        let (trace, span) = caller(n);
        let claim = api
            .claim_request(&format!("user {n}"), "PROMO")
            .header("traceparent", format!("00-{trace}-{span}-01"))
            .header("x-request-id", format!("claim-{n}"));
        claims.spawn(async move { anyhow::Ok(claim.send().await?.status().as_u16()) });
    };
    begin(0);
    until_queued(&client, 1).await?;
    for n in 1..=CROWD {
        begin(n);
    }
    eventually("the crowd to wait", async || {
        let scrape = Scrape::of(&api.service).await?;
        let waiting = scrape.value("honcho_lane_waiting_claims");
        Ok((waiting == CROWD as f64).then_some(()))
    })
    .await?;
    holder.batch_execute("rollback").await?;
    while let Some(status) = claims.join_next().await {
        assert_eq!(status??, 200);
    }

    let named = |spans: &[Span], name: &str| -> Vec<Span> {
        let named = spans.iter().filter(|span| span.name == name);
        named.cloned().collect()
    };
    let spans = eventually("the spans", async || {
        let spans = collector.spans();
        let requests = named(&spans, "POST /api/coupons/claim").len();
        let batches = named(&spans, "honcho_claim_batch").len();
        Ok((requests == CROWD + 1 && batches == 2).then_some(spans))
    })
    .await?;
    assert_eq!(collector.service_name().as_deref(), Some("honcho-service"));

    let requests = named(&spans, "POST /api/coupons/claim");
    let request = |n: usize| {
        let (trace, span) = caller(n);
        requests
            .iter()
            .find(|request| hex(&request.trace_id) == trace && hex(&request.parent_span_id) == span)
    };
    for n in 0..=CROWD {
        let request = request(n).with_context(|| format!("no span of claim {n}"))?;
        assert_eq!(request.kind(), SpanKind::Server);
        let attributes = &request.attributes;
        assert_eq!(
            text(attributes, "http.request.method").as_deref(),
            Some("POST")
        );
        assert_eq!(
            text(attributes, "http.route").as_deref(),
            Some("/api/coupons/claim")
        );
        assert_eq!(number(attributes, "http.response.status_code"), Some(200));
        let id = format!("claim-{n}");
        assert_eq!(text(attributes, "honcho.request_id"), Some(id));
        assert_ne!(
            request.status.as_ref().map(|status| status.code()),
            Some(StatusCode::Error)
        );
        assert!(request.end_time_unix_nano > request.start_time_unix_nano);
    }

    let mut batches = named(&spans, "honcho_claim_batch");
    batches.sort_by_key(|batch| batch.start_time_unix_nano);
    for (batch, claims) in batches.iter().zip([0..=0, 1..=CROWD]) {
        assert_eq!(batch.kind(), SpanKind::Client);
        let size = claims.clone().count();
        assert_eq!(
            number(&batch.attributes, "honcho.batch.claims"),
            Some(size.try_into()?)
        );
        assert_eq!(batch.links.len(), size);
        for n in claims {
            let request = request(n).context("no span of a claim")?;
            let linked = |link: &opentelemetry_proto::tonic::trace::v1::span::Link| {
                link.trace_id == request.trace_id && link.span_id == request.span_id
            };
            assert!(batch.links.iter().any(linked), "{n} is not linked");
        }
        let parent = &batch.links[0];
        assert_eq!(
            (&batch.trace_id, &batch.parent_span_id),
            (&parent.trace_id, &parent.span_id)
        );
    }
    let answered = format!("{spans:?}");
    assert!(
        !answered.contains("PROMO") && !answered.contains("user "),
        "{answered}"
    );
    database.books().await
}

#[tokio::test]
async fn unsampled_traces_are_not_exported() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let collector = Collector::default();
    let endpoint = collector.listen().await?;
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    for (n, flags) in ["00", "01"].iter().enumerate() {
        let (trace, span) = caller(n);
        let claim = api.claim_request(&format!("user {n}"), "PROMO");
        let parent = format!("00-{trace}-{span}-{flags}");
        assert_eq!(
            claim.header("traceparent", parent).send().await?.status(),
            200
        );
    }
    // Remaining spans are sent before the exit.
    let mut service = api.service;
    service.terminate()?;
    assert!(service.exit().await?.success());
    let (sampled, _) = caller(1);
    let traces: Vec<String> = collector
        .spans()
        .iter()
        .map(|span| hex(&span.trace_id))
        .collect();
    assert_eq!(traces, [sampled.clone(), sampled]);
    // The log has the trace id in both cases.
    let log = service.log();
    assert!(log.contains(&format!("trace_id={}", caller(0).0)), "{log}");
    Ok(())
}

#[tokio::test]
async fn unreachable_collector_delays_no_claim() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    // Bound, so that no other process gets the port, and never listened on.
    let unused = TcpSocket::new_v4()?;
    unused.bind(([127, 0, 0, 1], 0).into())?;
    let endpoint = format!("http://{}", unused.local_addr()?);
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    for n in 0..50 {
        assert_eq!(
            api.claim(&format!("user {n}"), "PROMO").await?.shown(),
            "200"
        );
    }
    eventually("an error in the log", async || {
        Ok(api.service.log().contains("ERROR").then_some(()))
    })
    .await?;
    let mut service = api.service;
    service.terminate()?;
    assert!(service.exit().await?.success());
    database.books().await
}
