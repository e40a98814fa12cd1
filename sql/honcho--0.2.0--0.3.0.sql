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

-- These functions run with their owner's rights: they resolve no name in a schema that others may write
-- to.
alter function @extschema@.honcho_create_coupon(text, integer, timestamptz, timestamptz)
    set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_get_coupon(text) set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_list_coupons(bigint, integer) set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_get_claim(text, text) set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_list_claims(text, bigint, integer) set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_verify(text) set search_path to pg_catalog, pg_temp;

-- As claims do, in their order.
lock table @extschema@.coupons, @extschema@.claims in access exclusive mode;

-- A foreign key refuses the claims where pg_restore loads them before the coupons, as it may with several
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

comment on table @extschema@.coupons is
    'Coupons and their stock. pg_dump keeps the rows alone: before you add columns, indexes or triggers, read Backup and restore in the README';
comment on table @extschema@.claims is
    'Who holds which coupon: at most one claim per user and coupon. pg_dump keeps the rows alone: before you add columns, indexes or triggers, read Backup and restore in the README';
