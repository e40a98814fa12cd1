-- Runs once after honcho.sql, if the volume is empty: makes the database honcho a shard, and lets the router in. Sessions
-- of the router end before the router gives them up.
\connect honcho
\set ON_ERROR_STOP on
\getenv shard HONCHO_SHARD
\set script `ls /usr/share/postgresql/*/extension/honcho_router/shard.sql`
\i :script

\getenv router_password HONCHO_ROUTER_PASSWORD
create role honcho_router login password :'router_password';
alter role honcho_router set statement_timeout = '4s';
alter role honcho_router set datestyle = 'ISO, MDY';
alter role honcho_router set lc_messages = 'C';
grant connect on database honcho to honcho_router;
select format('grant execute on function %s to honcho_router', p.oid::regprocedure)
from pg_extension e
join pg_depend d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e'
join pg_proc p on d.classid = 'pg_proc'::regclass and d.objid = p.oid
where e.extname = 'honcho' and p.proname like 'honcho\_%' \gexec
