# What the official rust image has, in its minimal profile: the toolchain of the machine that makes it,
# and a linker for it.
ARG DEBIAN
FROM debian:${DEBIAN}-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV RUSTUP_HOME=/usr/local/rustup \
    CARGO_HOME=/usr/local/cargo \
    PATH=/usr/local/cargo/bin:$PATH
COPY toolchain /usr/local/rustup/toolchains/stand-in
COPY cargo /usr/local/cargo
RUN mkdir /usr/local/cargo/bin \
    && ln -s /usr/local/rustup/toolchains/stand-in/bin/* /usr/local/cargo/bin/
