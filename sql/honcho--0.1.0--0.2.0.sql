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
set search_path to pg_catalog, @extschema@, pg_temp
as 'MODULE_PATHNAME', 'honcho_list_coupons_wrapper';

revoke all on function @extschema@.honcho_list_coupons(bigint, integer) from public;
comment on function @extschema@.honcho_list_coupons(bigint, integer) is
    'A page of the coupons in the order of their creation: up to max of those with an id above after';

-- Leads with the coupon now, so that the claims of one sale fall into few pages of a large index.
alter table @extschema@.claims
    add constraint claims_coupon_name_user_id_key unique (coupon_name, user_id),
    drop constraint claims_user_id_coupon_name_key;
