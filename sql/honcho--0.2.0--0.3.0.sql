\echo Use "alter extension honcho update" to load this file. \quit

-- Lengths are counted in characters, and Rust's strings are UTF-8.
do $$
begin
    if pg_catalog.getdatabaseencoding() operator(pg_catalog.<>) 'UTF8' then
        raise feature_not_supported using
            message = pg_catalog.concat('honcho works only in databases with the encoding UTF8, and this one has ',
                                        pg_catalog.getdatabaseencoding()),
            hint = 'Make the database with "create database NAME encoding ''UTF8'' template template0".';
    end if;
end $$;

-- These functions run with their owner's rights: they must not resolve a name in a schema that others may
-- write to.
alter function @extschema@.honcho_create_coupon(text, integer, timestamptz, timestamptz)
    set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_get_coupon(text) set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_list_coupons(bigint, integer) set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_get_claim(text, text) set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_list_claims(text, bigint, integer) set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_verify(text) set search_path to pg_catalog, pg_temp;

-- As claims do, in their order.
lock table @extschema@.coupons, @extschema@.claims in access exclusive mode;

-- A foreign key refuses the claims if pg_restore loads them before the coupons, which it may do with several
-- jobs. Triggers do the rest of its work.
alter table @extschema@.claims drop constraint if exists claims_coupon_name_fkey;

create function @extschema@.honcho_keep_claimed() returns trigger
language c
as 'MODULE_PATHNAME', 'honcho_keep_claimed_wrapper';

revoke all on function @extschema@.honcho_keep_claimed() from public;
comment on function @extschema@.honcho_keep_claimed() is
    'Trigger function: coupons that have claims are neither deleted nor renamed';

create trigger claims_coupon_name_fkey after delete or update on @extschema@.coupons
    for each row execute function @extschema@.honcho_keep_claimed();
create trigger claims_coupon_name_fkey_truncate after truncate on @extschema@.coupons
    for each statement execute function @extschema@.honcho_keep_claimed();

comment on trigger claims_coupon_name_fkey on @extschema@.coupons is
    'Keeps coupons that have claims from being deleted or renamed';
comment on trigger claims_coupon_name_fkey_truncate on @extschema@.coupons is
    'Keeps coupons that have claims from being truncated';

comment on type @extschema@.honcho_outcome is
    'The result of a claim: claimed, or the reason of its refusal';
comment on column @extschema@.coupons.name is 'Name by which users claim it; unique';
comment on column @extschema@.coupons.amount is 'Number of claims that can be made in total';
comment on column @extschema@.coupons.remaining_amount is 'Number of claims that can still be made';
comment on column @extschema@.coupons.starts_at is
    'First moment at which it can be claimed; null for no start';
comment on column @extschema@.coupons.ends_at is
    'First moment at which it can no longer be claimed; null for no end';
comment on column @extschema@.coupons.paused is 'True while claims are refused';
comment on column @extschema@.claims.user_id is 'User who holds the coupon';
comment on column @extschema@.claims.coupon_name is 'Name of the coupon';
comment on column @extschema@.claims.claimed_at is 'Time of the claim, by the clock, in its turn';
comment on table @extschema@.coupons is
    'Coupons and their stock. pg_dump keeps only the rows: before you add columns, indexes or triggers, read the documentation on backup and restore';
comment on table @extschema@.claims is
    'Claims: at most one per user and coupon. pg_dump keeps only the rows: before you add columns, indexes or triggers, read the documentation on backup and restore';
