# PostgreSQL with the honcho extension in it: the official image, two directories of files and an
# init script. Another PostgreSQL, 15 to 18, or another Debian:
#   docker build -f docker/postgres.Dockerfile --build-arg PG_MAJOR=17 --build-arg DEBIAN=trixie .
ARG PG_MAJOR=15
ARG DEBIAN=bookworm
ARG RUST=1.95

FROM rust:${RUST}-slim-${DEBIAN} AS rust

# Nothing but the version, so that cargo-pgrx is built again when that changes and not with every manifest.
FROM rust AS pgrx-version
COPY Cargo.toml /
RUN sed -n 's/^pgrx *= *"=\(.*\)"/\1/p' /Cargo.toml >/pgrx-version

# Unoptimised: quick to build, and it only drives cargo.
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
# RUSTFMT: pgrx formats the bindings that it generates, which nobody reads here.
ENV CARGO_HOME=/usr/local/cargo \
    RUSTUP_HOME=/usr/local/rustup \
    PATH=/usr/local/cargo/bin:$PATH \
    PGRX_HOME=/build/pgrx \
    RUSTFMT=true
WORKDIR /build
RUN mkdir pgrx && printf '[configs]\npg%s = "%s"\n' "$PG_MAJOR" \
    "/usr/lib/postgresql/$PG_MAJOR/bin/pg_config" >pgrx/config.toml

# The dependencies first, with an empty extension: they stay cached until a manifest changes.
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
# Sources may be older than the empty extension, which cargo would then take for up to date.
RUN touch extension/src/lib.rs \
    && cargo pgrx package --manifest-path extension/Cargo.toml --out-dir /package \
        --pg-config "/usr/lib/postgresql/$PG_MAJOR/bin/pg_config"

FROM postgres:${PG_MAJOR}-${DEBIAN}
COPY --from=build /package /
COPY scripts/lib/database.sql /usr/local/share/honcho/database.sql
COPY docker/initdb /docker-entrypoint-initdb.d
# Over TCP, for the server that runs the init scripts listens on its socket alone.
HEALTHCHECK --interval=5s --timeout=3s --retries=5 --start-period=1m \
    CMD ["pg_isready", "--quiet", "--host=127.0.0.1", "--username=honcho_service", "--dbname=postgres"]
