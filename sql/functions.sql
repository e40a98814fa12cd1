-- Nothing to public: a role that may claim is granted execute on the functions, and needs no more. This runs
-- last and asks the catalog, so that no function, table or sequence is forgotten.
do $$
declare
    member record;
begin
    for member in
        select object.type, object.identity
        from pg_catalog.pg_extension e
        join pg_catalog.pg_depend d
            on d.refclassid operator(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
            and d.refobjid operator(pg_catalog.=) e.oid
            and d.deptype operator(pg_catalog.=) 'e',
        lateral pg_catalog.pg_identify_object(d.classid, d.objid, d.objsubid) object
        where e.extname operator(pg_catalog.=) 'honcho'
          and object.type operator(pg_catalog.=) any (array['function', 'table', 'sequence'])
    loop
        execute pg_catalog.format('revoke all on %s %s from public', member.type, member.identity);
    end loop;
end $$;

comment on function @extschema@.honcho_create_coupon(text, integer, timestamptz, timestamptz) is
    'Creates a coupon; false if its name is taken';
comment on function @extschema@.honcho_claim(text, text) is
    'Claims a coupon for a user in the caller''s transaction; a refusal is a value that has written nothing';
comment on function @extschema@.honcho_claim_batch(text, text[]) is
    'Claims a coupon for up to 10,000 users at once; one outcome per user, in order';
comment on function @extschema@.honcho_claim_or_raise(text, text) is
    'Claims a coupon and returns the claim''s id; a refusal is an error that aborts the transaction';
comment on function @extschema@.honcho_claim(text, text, text) is
    'Claims a coupon for a user; claimed again for the same request key, whose claim it is';
comment on function @extschema@.honcho_claim_batch(text, text[], text[]) is
    'Claims a coupon for up to 10,000 users at once, each with the key of its request';
comment on function @extschema@.honcho_claim_many(text[], text[], boolean) is
    'Claims up to 10,000 pairs of users and coupons in one transaction; one outcome per pair, in order';
comment on function @extschema@.honcho_release(text, text) is
    'Gives a user''s claim back: its piece is stock again, and the user may claim again';
comment on function @extschema@.honcho_reserve(text, text, interval, text) is
    'Holds a piece of a coupon for a user, for 1 second to 24 hours';
comment on function @extschema@.honcho_confirm(text, text) is
    'Turns a user''s hold into a claim, before it expires';
comment on function @extschema@.honcho_cancel(text, text) is
    'Gives a user''s hold back: its piece is stock again';
comment on function @extschema@.honcho_expire(integer) is
    'Takes up to max expired holds back, which are stock in any case: it tidies';
comment on function @extschema@.honcho_apply(text, text[], text[], interval[], text[], text[]) is
    'Carries out up to 10,000 operations of all kinds on one coupon, in order';
comment on function @extschema@.honcho_update_coupon(text, integer, timestamptz, timestamptz, boolean) is
    'Changes a coupon''s amount, window and pause; null leaves each as it is';
comment on function @extschema@.honcho_restock(text, integer) is
    'Changes a coupon''s amount and stock by a difference';
comment on function @extschema@.honcho_delete_coupon(text, boolean) is
    'Deletes a coupon, with its claims and holds only if asked to';
comment on function @extschema@.honcho_get_stock(text) is
    'Stock and state of the coupon of that name, or no row';
comment on function @extschema@.honcho_get_hold(text, text) is
    'The user''s hold on the coupon, or no row';
comment on function @extschema@.honcho_list_holds(text, text, integer) is
    'A page of a coupon''s holds by user: up to max of those with a user above after';
comment on function @extschema@.honcho_list_user_claims(text, bigint, integer) is
    'A page of a user''s claims by coupon: up to max of those on coupons with an id above after';
comment on function @extschema@.honcho_list_events(bigint, integer, text) is
    'A page of the durable events of one coupon or all: up to max of those with an id above after';
comment on function @extschema@.honcho_purge_events(timestamptz, integer) is
    'Deletes up to max events before a moment, the oldest first';
comment on function @extschema@.honcho_get_coupon(text) is
    'The coupon of that name, or no row';
comment on function @extschema@.honcho_list_coupons(bigint, integer) is
    'A page of the coupons in the order of their creation: up to max of those with an id above after';
comment on function @extschema@.honcho_get_claim(text, text) is
    'The user''s claim on the coupon, or no row';
comment on function @extschema@.honcho_list_claims(text, bigint, integer) is
    'A page of a coupon''s claims in claim order: up to max of those with an id above after';
comment on function @extschema@.honcho_verify(text) is
    'Checks the books of one coupon, or of all: one row per coupon and invariant';
comment on function @extschema@.honcho_keep_claimed() is
    'Trigger function: coupons that have claims are neither deleted nor renamed';
