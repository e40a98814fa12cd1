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
-- A coupon that has claims stays, under its name, whatever else is changed of it.
delete from coupons;
update coupons set name = 'OTHER';
update coupons set name = 'PROMO', paused = false;
truncate coupons;
truncate coupons cascade;
\set VERBOSITY default
delete from coupons;
\set VERBOSITY sqlstate
delete from coupons;
\set VERBOSITY terse
do $$
declare
    "schema" text;
    "table" text;
    "constraint" text;
begin
    delete from coupons;
exception when foreign_key_violation then
    get stacked diagnostics "schema" = schema_name, "table" = table_name, "constraint" = constraint_name;
    raise notice '%.%: %', "schema", "table", "constraint";
end $$;
-- What the statement or the transaction has deleted counts no longer, and what it has claimed counts.
begin;
with gone as (delete from claims) delete from coupons;
rollback;
begin;
delete from claims;
update coupons set name = 'OTHER';
select honcho_claim('eve', 'OTHER');
delete from coupons;
rollback;
begin isolation level repeatable read;
truncate claims, coupons;
rollback;
-- A coupon without claims is nobody's concern.
select honcho_create_coupon('EMPTY', 2);
update coupons set name = 'RENAMED' where name = 'EMPTY';
delete from coupons where name = 'RENAMED';

-- They hold against the claim too: a stock that was cooked upwards meets the check.
alter table coupons drop constraint coupons_remaining_amount_check, drop constraint coupons_stock_check;
update coupons set remaining_amount = 7;
alter table coupons add constraint coupons_remaining_amount_check
    check (remaining_amount between 0 and amount) not valid;
select honcho_claim('bob', 'PROMO');
select remaining_amount, (select count(*) from claims) as claims from coupons;

drop extension honcho;
