-- Creates what the service needs in a cluster: the role honcho_service, and the database honcho with the extension.
-- Run again, it upgrades the extension, grants its new functions, and changes nothing else.
\set ON_ERROR_STOP on
set client_min_messages = warning;

select 'create database honcho'
where not exists (select from pg_database where datname = 'honcho') \gexec
select 'create role honcho_service login'
where not exists (select from pg_roles where rolname = 'honcho_service') \gexec

\connect honcho
set client_min_messages = warning;
-- In one transaction, so that the service is ready with the old functions or with the new ones at every moment.
begin;
create extension if not exists honcho;
alter extension honcho update;

-- The service may call the extension's functions, and nothing else.
revoke all on database honcho from public;
grant connect on database honcho to honcho_service;
select format('grant execute on function %s to honcho_service', p.oid::regprocedure)
from pg_extension e
join pg_depend d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e'
join pg_proc p on d.classid = 'pg_proc'::regclass and d.objid = p.oid
where e.extname = 'honcho' and p.proname like 'honcho\_%' \gexec
commit;
