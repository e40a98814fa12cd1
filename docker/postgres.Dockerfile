# PostgreSQL with the honcho extension: the official image with the extension's files and an init script. For another
# PostgreSQL, 15 to 18, or another Debian:
#   docker build -f docker/postgres.Dockerfile --build-arg PG_MAJOR=17 --build-arg DEBIAN=trixie .
ARG PG_MAJOR=15
ARG DEBIAN=bookworm
ARG RUST=1.95

FROM rust:${RUST}-slim-${DEBIAN} AS rust

# Only the version, so that cargo-pgrx is rebuilt if the version changes, and not with every change of Cargo.toml.
FROM rust AS pgrx-version
COPY Cargo.toml /
RUN sed -n 's/^pgrx *= *"=\(.*\)"/\1/p' /Cargo.toml >/pgrx-version

# Unoptimised, because it builds faster and only calls cargo.
FROM rust AS cargo-pgrx
COPY --from=pgrx-version /pgrx-version /
RUN CARGO_PROFILE_DEV_DEBUG=false cargo install --locked --debug --no-default-features \
    --root /opt/cargo-pgrx cargo-pgrx --version "=$(cat /pgrx-version)"

FROM postgres:${PG_MAJOR}-${DEBIAN} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates gcc libc6-dev libclang-dev "postgresql-server-dev-$PG_MAJOR" \
    && rm -rf /var/lib/apt/lists/*
COPY --from=rust /usr/local/cargo /usr/local/cargo
COPY --from=rust /usr/local/rustup /usr/local/rustup
COPY --from=cargo-pgrx /opt/cargo-pgrx/bin /usr/local/cargo/bin
# RUSTFMT=true: the bindings that pgrx generates need no formatting here.
ENV CARGO_HOME=/usr/local/cargo \
    RUSTUP_HOME=/usr/local/rustup \
    PATH=/usr/local/cargo/bin:$PATH \
    PGRX_HOME=/build/pgrx \
    RUSTFMT=true
WORKDIR /build
RUN mkdir pgrx && printf '[configs]\npg%s = "%s"\n' "$PG_MAJOR" \
    "/usr/lib/postgresql/$PG_MAJOR/bin/pg_config" >pgrx/config.toml

# Dependencies first, with an empty extension: this layer stays cached until a manifest changes.
COPY Cargo.toml Cargo.lock ./
COPY extension/Cargo.toml extension/honcho.control extension/
COPY service/Cargo.toml service/
COPY tests/Cargo.toml tests/
RUN mkdir extension/src service/src tests/src \
    && echo 'pgrx::pg_module_magic!();' >extension/src/lib.rs \
    && touch service/src/lib.rs tests/src/lib.rs \
    && cargo pgrx package --manifest-path extension/Cargo.toml --out-dir /empty \
        --pg-config "/usr/lib/postgresql/$PG_MAJOR/bin/pg_config"

COPY sql sql
COPY extension extension
# The sources may be older than the empty extension, which cargo would then regard as up to date.
RUN touch extension/src/lib.rs \
    && cargo pgrx package --manifest-path extension/Cargo.toml --out-dir /package \
        --pg-config "/usr/lib/postgresql/$PG_MAJOR/bin/pg_config"

FROM postgres:${PG_MAJOR}-${DEBIAN}
ARG PG_MAJOR
# Not empty for a router (docs/router.md).
ARG PLPROXY=
RUN if [ -n "$PLPROXY" ]; then \
        apt-get update \
        && apt-get install -y --no-install-recommends "postgresql-$PG_MAJOR-plproxy" \
        && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /package /
COPY router/honcho_router.control router/honcho_router--*.sql /usr/share/postgresql/${PG_MAJOR}/extension/
COPY router/shard.sql /usr/share/postgresql/${PG_MAJOR}/extension/honcho_router/
COPY scripts/lib/database.sql /usr/local/share/honcho/database.sql
COPY docker/initdb /docker-entrypoint-initdb.d
# Over TCP, because the server that runs the init scripts listens on its unix socket only.
HEALTHCHECK --interval=5s --timeout=3s --retries=5 --start-period=1m \
    CMD ["pg_isready", "--quiet", "--host=127.0.0.1", "--username=honcho_service", "--dbname=postgres"]
