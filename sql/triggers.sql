-- These stand in for a foreign key from claims to coupons (extension/src/claiming/reference.rs). They have its
-- name, which their errors give.
create trigger claims_coupon_name_fkey after delete or update on @extschema@.coupons
    for each row execute function @extschema@.honcho_keep_claimed();
create trigger claims_coupon_name_fkey_truncate after truncate on @extschema@.coupons
    for each statement execute function @extschema@.honcho_keep_claimed();

comment on trigger claims_coupon_name_fkey on @extschema@.coupons is
    'Keeps coupons that have claims from being deleted or renamed';
comment on trigger claims_coupon_name_fkey_truncate on @extschema@.coupons is
    'Keeps coupons that have claims from being truncated';
