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
