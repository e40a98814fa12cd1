-- The life of a coupon: window, pause, amount, restock, delete.
create extension honcho;
\set VERBOSITY terse
\pset format unaligned
\pset footer off
set timezone = 'UTC';
set datestyle = 'ISO';
-- Lets holds expire: those of a user, or of a coupon. The coupon's row has the first expiry too.
create function lapse(who text default '%', coupon text default '%') returns text language sql as $$
    update holds set expires_at = clock_timestamp() - interval '1 second' where user_id like who and coupon_name like coupon;
    update coupons set next_expiry = (select min(expires_at) from holds where coupon_name = name) where held_amount > 0;
    select 'lapsed' $$;

select honcho_create_coupon('PROMO', 3);
select * from honcho_update_coupon('NONE', 5);
select * from honcho_restock('NONE', 5);
select honcho_delete_coupon('NONE');
-- Nothing is given, so nothing changes.
select * from honcho_update_coupon('PROMO');

-- Window. The first moment counts, the last does not.
select * from honcho_update_coupon('PROMO', starts_at => '2100-01-01');
select honcho_claim('ann', 'PROMO');
select * from honcho_update_coupon('PROMO', starts_at => '2020-01-01', ends_at => '2020-02-01');
select honcho_claim('ann', 'PROMO');
select * from honcho_update_coupon('PROMO', ends_at => '2100-02-01');
select honcho_claim('ann', 'PROMO');
-- What is null stays; infinities remove a bound.
select * from honcho_update_coupon('PROMO', starts_at => '-infinity');
select * from honcho_update_coupon('PROMO', ends_at => 'infinity');
select starts_at is null as no_start, ends_at is null as no_end from coupons;
select * from honcho_update_coupon('PROMO', starts_at => 'infinity');
select * from honcho_update_coupon('PROMO', ends_at => '-infinity');
-- Also with what is there already, the end lies after the start.
select * from honcho_update_coupon('PROMO', starts_at => '2030-01-02', ends_at => '2030-01-01');
select * from honcho_update_coupon('PROMO', starts_at => '2030-01-01', ends_at => '2030-01-01');
select outcome, starts_at from honcho_update_coupon('PROMO', starts_at => '2030-01-01');
select * from honcho_update_coupon('PROMO', ends_at => '2030-01-01');
select * from honcho_update_coupon('PROMO', ends_at => '2029-01-01');
select outcome, starts_at from honcho_update_coupon('PROMO', starts_at => '-infinity');

-- Pause.
select outcome, paused, state from honcho_update_coupon('PROMO', paused => true);
select honcho_claim('bob', 'PROMO') as bob, honcho_claim('ann', 'PROMO') as ann;
select outcome, paused, state from honcho_update_coupon('PROMO', paused => true);
select outcome, paused, state from honcho_update_coupon('PROMO', paused => false);
select honcho_claim('bob', 'PROMO');

-- Amount: what remains moves by the difference.
select outcome, amount, remaining_amount, state from honcho_update_coupon('PROMO', 10);
select outcome, amount, remaining_amount, state from honcho_update_coupon('PROMO', 2);
select honcho_claim('eve', 'PROMO');
select outcome, amount, remaining_amount, state from honcho_update_coupon('PROMO', 1);
select outcome, amount, remaining_amount, state from honcho_update_coupon('PROMO', 0);
select outcome, amount, remaining_amount, state from honcho_restock('PROMO', 3);
select outcome, amount, remaining_amount, state from honcho_restock('PROMO', -2);
select outcome, amount, remaining_amount, state from honcho_restock('PROMO', -2);
select outcome, amount, remaining_amount, state from honcho_restock('PROMO', 0);
-- Nothing of a call that is refused is done.
select outcome, amount, remaining_amount, ends_at, paused, state
from honcho_update_coupon('PROMO', 1, ends_at => '2100-01-01', paused => true);
-- Several things in one call.
select * from honcho_update_coupon('PROMO', 4, '2020-01-01', '2100-01-01', false);
-- Held pieces are given too.
select outcome from honcho_reserve('eve', 'PROMO', '1 hour');
select outcome, amount, remaining_amount, held_amount, state from honcho_update_coupon('PROMO', 3);
select outcome, amount, remaining_amount, held_amount, state from honcho_update_coupon('PROMO', 2);
select outcome, amount, remaining_amount, held_amount, state from honcho_restock('PROMO', -1);
-- Expired ones are stock again.
select lapse();
select outcome, amount, remaining_amount, held_amount, state from honcho_restock('PROMO', -1);
-- An amount of none.
select honcho_create_coupon('EMPTY', 1);
select outcome, amount, remaining_amount, state from honcho_update_coupon('EMPTY', 0);
select honcho_claim('ann', 'EMPTY');
select outcome, amount, remaining_amount, state from honcho_restock('EMPTY', 1);
select outcome, amount, remaining_amount, state from honcho_restock('EMPTY', -2);

-- The largest amount.
select honcho_create_coupon('MOST', 2147483646);
select honcho_claim('ann', 'MOST');
select * from honcho_restock('MOST', 2);
select outcome, amount, remaining_amount from honcho_restock('MOST', 1);
select * from honcho_restock('MOST', 1);
select * from honcho_restock('MOST', 2147483647);
select outcome, amount, remaining_amount from honcho_restock('MOST', (-2147483648));
select outcome, amount, remaining_amount from honcho_restock('MOST', -2147483646);

-- Stock: what a claim by a new user would meet.
select name, amount, remaining_amount, held_amount, starts_at, ends_at, paused, state, next_expiry,
       last_claim_id = (select max(id) from claims where coupon_name = 'PROMO') as newest
from honcho_get_stock('PROMO');
select * from honcho_get_stock('NONE');
select state, last_claim_id from honcho_get_stock('EMPTY');
select honcho_create_coupon('STATE', 1);
select state, last_claim_id from honcho_get_stock('STATE');
select outcome from honcho_reserve('ann', 'STATE', '1 hour');
select state, next_expiry = (select expires_at from honcho_get_hold('ann', 'STATE')) as hold from honcho_get_stock('STATE');
select lapse(coupon => 'STATE');
select state, remaining_amount, held_amount, next_expiry < clock_timestamp() as past from honcho_get_stock('STATE');
select honcho_claim('bob', 'STATE');
select state, remaining_amount, held_amount, next_expiry from honcho_get_stock('STATE');

-- Delete.
select honcho_delete_coupon('STATE');
select honcho_release('bob', 'STATE');
select outcome from honcho_reserve('ann', 'STATE', '1 hour');
select honcho_delete_coupon('STATE');
select honcho_delete_coupon('STATE', with_claims => false);
select count(*) from honcho_get_coupon('STATE');
-- An expired hold does not keep it.
select lapse(coupon => 'STATE');
select honcho_delete_coupon('STATE');
select honcho_delete_coupon('STATE');
select honcho_claim('ann', 'STATE');
-- The name is free, and nothing is left of the first one.
select honcho_create_coupon('STATE', 2);
select count(*) from holds where coupon_name = 'STATE';
select honcho_claim('bob', 'STATE', 'key'), honcho_claim('bob', 'STATE', 'key');
select outcome from honcho_reserve('ann', 'STATE', '1 hour');
select honcho_delete_coupon('STATE', true);
select count(*) from claims where coupon_name = 'STATE';
select count(*) from holds where coupon_name = 'STATE';
select honcho_create_coupon('STATE', 2);
select honcho_claim('bob', 'STATE', 'key');
-- In a transaction.
begin;
select honcho_delete_coupon('STATE', true), honcho_create_coupon('STATE', 5), honcho_claim('eve', 'STATE');
rollback;
select amount, remaining_amount, array(select user_id from honcho_list_claims('STATE')) from honcho_get_coupon('STATE');

-- The claims of a user, on all coupons.
select coupon_name, coupon_id = (select id from coupons where name = coupon_name) as id, claimed_at <= clock_timestamp() as past
from honcho_list_user_claims('ann');
select coupon_name from honcho_list_user_claims('ann', max => 1);
select coupon_name from honcho_list_user_claims('ann', after => (select id from honcho_get_coupon('PROMO')));
select * from honcho_list_user_claims('nobody');

-- Read-only transactions: what is certain without a turn is answered.
begin read only;
select outcome from honcho_update_coupon('NONE', 5);
select honcho_delete_coupon('NONE');
select honcho_cancel('nobody', 'PROMO'), honcho_confirm('nobody', 'PROMO');
select outcome from honcho_reserve('nobody', 'PROMO', '1 hour');
savepoint s;
select outcome from honcho_restock('PROMO', 1);
rollback to s;
select outcome from honcho_update_coupon('PROMO', paused => true);
rollback to s;
select honcho_delete_coupon('STATE');
rollback;

-- The infinities that are no bounds are none in a creation, too.
select honcho_create_coupon('ALWAYS', 1, '-infinity', 'infinity');
select starts_at is null as no_start, ends_at is null as no_end from coupons where name = 'ALWAYS';
select kind, details from honcho_list_events(coupon_name => 'ALWAYS');

select * from honcho_verify() where not holds;
drop function lapse;
drop extension honcho;
