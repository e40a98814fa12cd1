# HAProxy in front of one shard, which SHARD names.
ARG DEBIAN=bookworm

FROM debian:${DEBIAN}-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends haproxy \
    && rm -rf /var/lib/apt/lists/*
COPY docker/haproxy/haproxy.cfg /etc/haproxy/haproxy.cfg
EXPOSE 5432
# The package's user, as a number: it writes no files.
USER 65532:65532
HEALTHCHECK --interval=5s --timeout=3s --retries=3 --start-period=10s \
    CMD ["bash", "-c", ": </dev/tcp/127.0.0.1/5432"]
STOPSIGNAL SIGUSR1
# In the foreground, without a master process.
ENTRYPOINT ["haproxy", "-db", "-f", "/etc/haproxy/haproxy.cfg"]
