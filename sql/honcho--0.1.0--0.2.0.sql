\echo Use "alter extension honcho update" to load this file. \quit

create function @extschema@.honcho_list_coupons(
    "after" bigint default 0,
    "max" integer default 1000
) returns table (
    id bigint,
    name text,
    amount integer,
    remaining_amount integer,
    created_at timestamptz,
    starts_at timestamptz,
    ends_at timestamptz,
    paused boolean
)
language c
stable security definer parallel safe
set search_path to pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'honcho_list_coupons_wrapper';

revoke all on function @extschema@.honcho_list_coupons(bigint, integer) from public;
comment on function @extschema@.honcho_list_coupons(bigint, integer) is
    'A page of the coupons in the order of their creation: up to max of those with an id above after';

-- As claims do, in their order.
lock table @extschema@.coupons, @extschema@.claims in access exclusive mode;

-- Leads with the coupon now, so that the claims of one sale fall into few pages of a large index.
alter table @extschema@.claims
    add constraint claims_coupon_name_user_id_key unique (coupon_name, user_id);

-- The key that it replaces. It stays if something else needs it: a foreign key of the users' that refers
-- to it, or logical replication.
do $$
declare
    before record;
begin
    select c.conindid, i.indisreplident as identifies,
           exists (select from pg_catalog.pg_depend d
                   where d.refclassid operator(pg_catalog.=) 'pg_catalog.pg_constraint'::pg_catalog.regclass
                     and d.refobjid operator(pg_catalog.=) c.oid
                     and d.deptype operator(pg_catalog.<>) 'i'
                      or d.refclassid operator(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
                     and d.refobjid operator(pg_catalog.=) c.conindid) as needed
    into before
    from pg_catalog.pg_constraint c
    join pg_catalog.pg_index i on i.indexrelid operator(pg_catalog.=) c.conindid
    where c.conrelid operator(pg_catalog.=) '@extschema@.claims'::pg_catalog.regclass
      and c.conname operator(pg_catalog.=) 'claims_user_id_coupon_name_key';
    if before.needed or before.identifies then
        raise warning using
            message = 'the key claims_user_id_coupon_name_key of claims is no longer needed by honcho, but stays: '
                'something else needs it',
            hint = 'Drop it when nothing does: every claim maintains it. Foreign keys and a replica identity can '
                'rest on claims_coupon_name_user_id_key.';
    else
        alter table @extschema@.claims drop constraint if exists claims_user_id_coupon_name_key;
    end if;
end $$;
