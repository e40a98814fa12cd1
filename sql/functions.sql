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
