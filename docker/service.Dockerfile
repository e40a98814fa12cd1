# The HTTP service. It needs DATABASE_URL; `honcho-service --help` lists all settings.
ARG DEBIAN=bookworm
ARG RUST=1.95

FROM rust:${RUST}-slim-${DEBIAN} AS build
WORKDIR /build
# Dependencies first, with an empty service: this layer stays cached until a manifest changes.
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
# The sources may be older than the empty service, which cargo would then regard as up to date.
RUN touch service/src/lib.rs service/src/main.rs \
    && cargo build --release --locked -p honcho-service

FROM debian:${DEBIAN}-slim
COPY --from=build /build/target/release/honcho-service /usr/local/bin/
# The certificate authorities that TLS trusts by default.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
ENV HOST=0.0.0.0
EXPOSE 8080
# A user without files: the service writes none.
USER 65532:65532
HEALTHCHECK --interval=5s --timeout=3s --retries=3 --start-period=10s \
    CMD ["honcho-service", "--health-check"]
ENTRYPOINT ["honcho-service"]
