-- The constraints are the backstop: they hold against writers who go past the functions.
create extension honcho;
\set VERBOSITY terse
select honcho_create_coupon('PROMO', 2);
select honcho_claim('ann', 'PROMO');

-- The unique key.
insert into claims (user_id, coupon_name) values ('ann', 'PROMO');
-- The checks on stock.
update coupons set remaining_amount = -1;
update coupons set remaining_amount = 3;
update coupons set amount = -1;
-- The foreign key, which the claim itself need not consult.
insert into claims (user_id, coupon_name) values ('ann', 'NONE');
delete from coupons;
update coupons set name = 'OTHER';

-- They hold against the claim too: a stock that was cooked upwards meets the check.
alter table coupons drop constraint coupons_remaining_amount_check;
update coupons set remaining_amount = 7;
alter table coupons add constraint coupons_remaining_amount_check
    check (remaining_amount between 0 and amount) not valid;
select honcho_claim('bob', 'PROMO');
select remaining_amount, (select count(*) from claims) as claims from coupons;

drop extension honcho;
