//! Traces: W3C trace context, and spans for an OpenTelemetry collector if one is configured.

use std::{env, str::FromStr, sync::OnceLock, time::Duration};

use anyhow::{Context as _, Result};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri};
use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator,
    trace::{
        Link, SpanContext, SpanKind, Status, TraceContextExt, TraceId, Tracer, TracerProvider,
    },
};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Longest time for sending the last spans.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

static EXPORT: OnceLock<Export> = OnceLock::new();

/// Exporter of spans.
#[derive(Debug)]
struct Export {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// Base URL of a collector that takes OTLP over HTTP.
#[derive(Clone, Debug)]
pub struct CollectorUrl(String);

impl FromStr for CollectorUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = text.parse::<Uri>().ok();
        url.filter(|url| url.scheme_str() == Some("http") && url.host().is_some())
            .map(|_| Self(text.trim_end_matches('/').to_owned()))
            .ok_or("must be an http:// URL, such as http://localhost:4318")
    }
}

/// Starts exporting spans. Sampling, queue, resource and headers follow OpenTelemetry's `OTEL_…` variables.
///
/// # Errors
/// The exporter cannot be made. It does not connect yet.
pub fn start(collector: &CollectorUrl) -> Result<()> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", collector.0))
        .build()?;
    let mut resource = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("honcho-service");
    }
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource.build())
        .build();
    let tracer = provider.tracer("honcho-service");
    EXPORT
        .set(Export { provider, tracer })
        .ok()
        .context("spans are exported already")
}

/// Sends the remaining spans, for two seconds at most. Blocks.
pub fn finish() {
    if let Some(export) = EXPORT.get()
        && let Err(error) = export.provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT)
    {
        tracing::warn!("the last spans were lost: {error}");
    }
}

/// Reads the caller's span, if the request names a valid one.
fn caller(headers: &HeaderMap) -> Option<Context> {
    // Most requests have none, and this is all that it costs them.
    headers.contains_key(TRACEPARENT).then(|| {
        TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &HeaderExtractor(headers))
    })
}

/// Trace of a request, with the request's span if spans are exported.
#[derive(Debug)]
pub(crate) struct Trace {
    /// Holds the request's span, or the caller's.
    context: Option<Context>,
    exported: bool,
}

impl Trace {
    /// Starts the request's span as a child of the caller's.
    pub(crate) fn start(method: &Method, route: &str, headers: &HeaderMap) -> Self {
        let caller = caller(headers);
        let Some(export) = EXPORT.get() else {
            return Self {
                context: caller,
                exported: false,
            };
        };
        let parent = caller.unwrap_or_default();
        let span = export
            .tracer
            .span_builder(format!("{method} {route}"))
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("http.request.method", method.as_str().to_owned()),
                KeyValue::new("http.route", route.to_owned()),
            ]);
        let span = export.tracer.build_with_context(span, &parent);
        Self {
            context: Some(parent.with_span(span)),
            exported: true,
        }
    }

    /// Context for the request's work, if spans are exported.
    pub(crate) fn context(&self) -> Option<&Context> {
        self.context.as_ref().filter(|_| self.exported)
    }

    /// Id of the trace, if there is one.
    pub(crate) fn id(&self) -> Option<TraceId> {
        let context = self.context.as_ref()?;
        let id = context.span().span_context().trace_id();
        (id != TraceId::INVALID).then_some(id)
    }

    /// Ends the request's span.
    pub(crate) fn finish(self, status: StatusCode, request_id: &str) {
        let Some(context) = self.context() else {
            return;
        };
        let span = context.span();
        span.set_attributes([
            KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
            KeyValue::new("honcho.request_id", request_id.to_owned()),
        ]);
        if status.is_server_error() {
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

/// The current span, if it is to be exported.
pub(crate) fn current() -> Option<Box<SpanContext>> {
    EXPORT.get()?;
    Context::map_current(|context| {
        let span = context.span();
        let span = span.span_context();
        span.is_sampled().then(|| Box::new(span.clone()))
    })
}

/// Span of a batch, which ends when this is dropped; none if none of its operations has a span. It is a child of the
/// first request's, so that both are sampled together, and linked with all.
#[derive(Debug)]
pub(crate) struct BatchSpan(Option<Context>);

impl BatchSpan {
    /// Starts the span of a batch.
    ///
    /// # Arguments
    /// `function`: the function that is called. `operations`: the number of its operations. `traced`: the spans of
    /// their requests.
    pub(crate) fn start<'a>(
        function: &'static str,
        operations: usize,
        traced: impl Iterator<Item = &'a SpanContext>,
    ) -> Self {
        let Some(export) = EXPORT.get() else {
            return Self(None);
        };
        let links: Vec<Link> = traced.cloned().map(Link::with_context).collect();
        let Some(first) = links.first() else {
            return Self(None);
        };
        let parent = Context::new().with_remote_span_context(first.span_context.clone());
        let span = export
            .tracer
            .span_builder(function)
            .with_kind(SpanKind::Client)
            .with_links(links)
            .with_attributes([
                KeyValue::new("db.system.name", "postgresql"),
                KeyValue::new("db.operation.name", function),
                KeyValue::new(
                    "honcho.batch.claims",
                    i64::try_from(operations).unwrap_or(i64::MAX),
                ),
            ]);
        let span = export.tracer.build_with_context(span, &parent);
        Self(Some(parent.with_span(span)))
    }

    /// Marks the batch as failed.
    pub(crate) fn fail(&self, error: &impl ToString) {
        if let Some(context) = &self.0 {
            context.span().set_status(Status::error(error.to_string()));
        }
    }
}
