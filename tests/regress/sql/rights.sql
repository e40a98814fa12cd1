-- Whoever may execute the functions can claim, and can touch no table; others can do nothing.
create extension honcho;
\pset footer off
select honcho_create_coupon('PROMO', 5);
create role regress_honcho_claimer;
create role regress_honcho_nobody;
grant execute on function honcho_claim, honcho_claim_batch, honcho_get_coupon to regress_honcho_claimer;

set role regress_honcho_claimer;
select honcho_claim('ann', 'PROMO');
select * from honcho_claim_batch('PROMO', array['ann', 'bob']);
select remaining_amount from honcho_get_coupon('PROMO');
select count(*) from coupons;
select count(*) from claims;
insert into claims (user_id, coupon_name) values ('eve', 'PROMO');
update coupons set remaining_amount = 100;
delete from claims;
truncate claims;
select nextval('claims_id_seq');
select honcho_create_coupon('MINE', 1);
select * from honcho_verify();

set role regress_honcho_nobody;
select honcho_claim('ann', 'PROMO');
select * from honcho_claim_batch('PROMO', array['ann']);
select honcho_claim_or_raise('ann', 'PROMO');
select honcho_create_coupon('MINE', 1);
select * from honcho_get_coupon('PROMO');
select * from honcho_list_coupons();
select * from honcho_get_claim('ann', 'PROMO');
select * from honcho_list_claims('PROMO');
select * from honcho_verify();
select * from coupons;
select * from claims;

reset role;
select * from honcho_verify();
drop extension honcho;
drop role regress_honcho_claimer, regress_honcho_nobody;
