-- Nothing to public: whoever may claim is granted execute on the functions, and needs no more.
revoke all on @extschema@.coupons, @extschema@.claims from public;
revoke all on sequence @extschema@.coupons_id_seq, @extschema@.claims_id_seq from public;
revoke all on type @extschema@.honcho_outcome from public;
grant usage on type @extschema@.honcho_outcome to public;
