# The minimal profile of the official rust image: the toolchain of the machine that builds it, and a linker.
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
