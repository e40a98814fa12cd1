# The HTTP service. DATABASE_URL says where its database is; see the README for what else it takes.
ARG DEBIAN=bookworm
ARG RUST=1.95

FROM rust:${RUST}-slim-${DEBIAN} AS build
WORKDIR /build
# The dependencies first, with an empty service: they stay cached until a manifest changes.
COPY Cargo.toml Cargo.lock ./
COPY extension/Cargo.toml extension/
COPY service/Cargo.toml service/
COPY tests/Cargo.toml tests/
RUN mkdir extension/src service/src tests/src \
    && touch extension/src/lib.rs tests/src/lib.rs \
    && echo '//! Empty.' >service/src/lib.rs \
    && printf '//! Empty.\nfn main() {}\n' >service/src/main.rs \
    && cargo build --release --locked -p honcho-service

COPY service service
# Sources may be older than the empty service, which cargo would then take for up to date.
RUN touch service/src/lib.rs service/src/main.rs \
    && cargo build --release --locked -p honcho-service

FROM debian:${DEBIAN}-slim
COPY --from=build /build/target/release/honcho-service /usr/local/bin/
# Whom TLS trusts unless it is told otherwise.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
ENV HOST=0.0.0.0
EXPOSE 8080
# Nobody's: it owns no file, and none is written.
USER 65532:65532
HEALTHCHECK --interval=5s --timeout=3s --retries=3 --start-period=10s \
    CMD ["honcho-service", "--health-check"]
ENTRYPOINT ["honcho-service"]
