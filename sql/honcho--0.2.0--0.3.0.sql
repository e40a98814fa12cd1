\echo Use "alter extension honcho update" to load this file. \quit

-- These functions run with their owner's rights: they resolve no name in a schema that others may write
-- to.
alter function @extschema@.honcho_create_coupon(text, integer, timestamptz, timestamptz)
    set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_get_coupon(text) set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_list_coupons(bigint, integer) set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_get_claim(text, text) set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_list_claims(text, bigint, integer) set search_path to pg_catalog, pg_temp;
alter function @extschema@.honcho_verify(text) set search_path to pg_catalog, pg_temp;
