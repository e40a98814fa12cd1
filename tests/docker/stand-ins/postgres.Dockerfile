# The part of the official postgres image that docker/postgres.Dockerfile relies on, from Debian's packages.
ARG DEBIAN
FROM debian:${DEBIAN}-slim
ARG PG_MAJOR
RUN groupadd --system --gid 999 postgres \
    && useradd --system --gid postgres --uid 999 --home-dir /var/lib/postgresql postgres \
    && apt-get update \
    && apt-get install -y --no-install-recommends postgresql-common \
    && sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf \
    && apt-get install -y --no-install-recommends "postgresql-$PG_MAJOR" \
    && rm -rf /var/lib/apt/lists/* \
    && sed -i "s/^#listen_addresses = .*/listen_addresses = '*'/" \
        "/usr/share/postgresql/$PG_MAJOR/postgresql.conf.sample"
ENV LANG=C.UTF-8 \
    PG_MAJOR=$PG_MAJOR \
    PATH=$PATH:/usr/lib/postgresql/$PG_MAJOR/bin \
    PGDATA=/var/lib/postgresql/data
RUN mkdir /docker-entrypoint-initdb.d \
    && install -d -o postgres -g postgres -m 1777 "$PGDATA" \
    && install -d -o postgres -g postgres -m 3777 /var/run/postgresql
VOLUME /var/lib/postgresql/data
COPY docker-entrypoint.sh /usr/local/bin/
ENTRYPOINT ["docker-entrypoint.sh"]
STOPSIGNAL SIGINT
EXPOSE 5432
CMD ["postgres"]
