-- Nothing to public: whoever may claim is granted execute on the functions, and needs no more.
revoke all on @extschema@.coupons, @extschema@.claims from public;
revoke all on sequence @extschema@.coupons_id_seq, @extschema@.claims_id_seq from public;

revoke all on function
    @extschema@.honcho_create_coupon(text, integer, timestamptz, timestamptz),
    @extschema@.honcho_claim(text, text),
    @extschema@.honcho_claim_batch(text, text[]),
    @extschema@.honcho_claim_or_raise(text, text),
    @extschema@.honcho_get_coupon(text),
    @extschema@.honcho_list_coupons(bigint, integer),
    @extschema@.honcho_get_claim(text, text),
    @extschema@.honcho_list_claims(text, bigint, integer),
    @extschema@.honcho_verify(text),
    @extschema@.honcho_keep_claimed()
from public;
