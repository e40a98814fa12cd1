-- Runs once on the router, in place of honcho.sql, if the volume is empty: makes the functions that lead to the shards, and
-- the role that may call them.
\connect honcho
\set ON_ERROR_STOP on
\getenv router_password HONCHO_ROUTER_PASSWORD
\getenv service_password HONCHO_SERVICE_PASSWORD
create role honcho_router;
create role honcho_service login password :'service_password';
revoke all on database honcho from public;
grant connect on database honcho to honcho_service;
create extension honcho_router cascade;
create server honcho foreign data wrapper plproxy options (
    query_timeout '5',
    p0 'host=haproxy-0 dbname=honcho',
    p1 'host=haproxy-1 dbname=honcho'
);
create user mapping for honcho_router server honcho options (user 'honcho_router', password :'router_password');
grant usage on foreign server honcho to honcho_router;
grant usage on schema honcho_router to honcho_service;
grant execute on function honcho_router.place(text), honcho_router.shard(text) to honcho_service;
select format('grant execute on function %s to honcho_service', p.oid::regprocedure)
from pg_proc p
where p.pronamespace = 'public'::regnamespace and p.proname like 'honcho\_%' \gexec
