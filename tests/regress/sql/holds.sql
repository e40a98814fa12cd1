-- Holds: reserve, confirm, cancel, expire, and reading them.
create extension honcho;
\pset format unaligned
\pset footer off

-- The rows, with the time that a hold has left in whole minutes.
create view books as
select name, amount, remaining_amount, held_amount,
       array(select user_id from claims where coupon_name = name order by id) as claims,
       array(select concat_ws(' ', user_id, round(extract(epoch from expires_at - clock_timestamp()) / 60), request_key)
             from holds where coupon_name = name order by user_id) as holds
from coupons order by coupons.id;
-- Lets holds expire: those of a user, or of a coupon. The coupon's row has the first expiry too.
create function lapse(who text default '%', coupon text default '%') returns text language sql as $$
    update holds set expires_at = clock_timestamp() - interval '1 second' where user_id like who and coupon_name like coupon;
    update coupons set next_expiry = (select min(expires_at) from holds where coupon_name = name) where held_amount > 0;
    select 'lapsed' $$;

select honcho_create_coupon('PROMO', 2);
select outcome, round(extract(epoch from expires_at - clock_timestamp()) / 60) as minutes
from honcho_reserve('ann', 'PROMO', '10 minutes');
-- The same hold again: its expiry is unchanged, whatever is asked for.
select outcome, round(extract(epoch from expires_at - clock_timestamp()) / 60) as minutes
from honcho_reserve('ann', 'PROMO', '1 hour', 'key');
select outcome from honcho_reserve('bob', 'PROMO', '24 hours', 'key of bob');
select * from books;
-- No stock, but some may come back: the answer says when.
select outcome, round(extract(epoch from expires_at - clock_timestamp()) / 60) as minutes
from honcho_reserve('eve', 'PROMO', '1 hour');
select honcho_claim('eve', 'PROMO');
select * from honcho_claim_batch('PROMO', array['eve', 'joe']);
select user_id, coupon_name, round(extract(epoch from expires_at - created_at) / 60) as minutes
from honcho_get_hold('ann', 'PROMO');
select * from honcho_get_hold('eve', 'PROMO');
select * from honcho_get_hold('ann', 'NONE');
select user_id from honcho_list_holds('PROMO');
select user_id from honcho_list_holds('PROMO', after => 'ann');
select user_id from honcho_list_holds('PROMO', max => 1);
select * from honcho_list_holds('NONE');

-- Confirm: the claim out of the hold. Repeating it is safe.
select honcho_confirm('bob', 'PROMO') as first, honcho_confirm('bob', 'PROMO') as again,
       honcho_confirm('eve', 'PROMO') as not_held, honcho_confirm('eve', 'NONE') as not_found;
select user_id, request_key from claims;
-- Nor is a claim held or cancelled.
select outcome, expires_at from honcho_reserve('bob', 'PROMO', '1 hour');
select honcho_cancel('bob', 'PROMO') as claimed, honcho_cancel('eve', 'PROMO') as not_held,
       honcho_cancel('eve', 'NONE') as not_found;
-- Cancel: the piece is stock again.
select honcho_cancel('ann', 'PROMO') as first, honcho_cancel('ann', 'PROMO') as again;
select * from books;
select honcho_claim('eve', 'PROMO');
-- Now nothing can come back.
select outcome, expires_at from honcho_reserve('joe', 'PROMO', '1 hour');
select outcome, expires_at from honcho_reserve('joe', 'NONE', '1 hour');

-- The holder claims directly: the claim is made out of the hold.
select honcho_create_coupon('HOLDER', 1);
select outcome from honcho_reserve('ann', 'HOLDER', '1 hour');
select honcho_claim('bob', 'HOLDER') as bob, honcho_claim('ann', 'HOLDER') as ann, honcho_claim('ann', 'HOLDER') as again;
select * from books where name = 'HOLDER';
select honcho_release('ann', 'HOLDER');
select outcome from honcho_reserve('ann', 'HOLDER', '1 hour');
select * from honcho_claim_batch('HOLDER', array['bob', 'ann', 'ann']);
select honcho_release('ann', 'HOLDER');
select outcome from honcho_reserve('ann', 'HOLDER', '1 hour');
select honcho_claim_or_raise('ann', 'HOLDER') = (select id from honcho_get_claim('ann', 'HOLDER')) as id;

-- An expired hold is nothing: not confirmed, not cancelled, not listed, and stock for the next user without a sweep.
select honcho_create_coupon('LATE', 2);
select outcome from honcho_reserve('ann', 'LATE', '1 hour');
select outcome from honcho_reserve('bob', 'LATE', '1 hour');
select lapse('ann');
select honcho_confirm('ann', 'LATE'), honcho_cancel('ann', 'LATE');
select * from honcho_get_hold('ann', 'LATE');
select user_id from honcho_list_holds('LATE');
select held_amount, remaining_amount from coupons where name = 'LATE';
select state, next_expiry < clock_timestamp() as due from honcho_get_stock('LATE');
select honcho_claim('eve', 'LATE');
select honcho_confirm('ann', 'LATE');
select name, amount, remaining_amount, held_amount, claims, holds from books where name = 'LATE';
-- The holder may ask again: this is a new hold.
select lapse('bob');
select outcome, round(extract(epoch from expires_at - clock_timestamp()) / 60) as minutes
from honcho_reserve('bob', 'LATE', '2 hours');
select * from books where name = 'LATE';
-- Or claim.
select lapse('bob');
select honcho_claim('bob', 'LATE');
select * from books where name = 'LATE';
-- A hold that has expired keeps nobody from another piece.
select outcome from honcho_restock('LATE', 2);
select outcome from honcho_reserve('joe', 'LATE', '1 hour');
select lapse('joe');
select outcome from honcho_reserve('joe', 'LATE', '3 hours');
select * from books where name = 'LATE';
select lapse('joe');
select honcho_claim('joe', 'LATE');
select * from books where name = 'LATE';
-- A batch takes back what it needs.
select honcho_create_coupon('MANY', 400);
select outcome, count(*) from honcho_apply('MANY', array_fill('reserve'::text, array[400]),
    (select array_agg('u' || i) from generate_series(1, 400) i), array_fill('1 hour'::interval, array[400]))
group by outcome;
select lapse(coupon => 'MANY');
select outcome, count(*) from honcho_claim_batch('MANY', (select array_agg('v' || i) from generate_series(1, 300) i))
group by outcome;
select amount, remaining_amount + held_amount as left, held_amount <= 100 as taken_back from coupons where name = 'MANY';
-- A single claim takes back a bounded number.
select honcho_create_coupon('BOUND', 400);
select outcome, count(*) from honcho_apply('BOUND', array_fill('reserve'::text, array[400]),
    (select array_agg('u' || i) from generate_series(1, 400) i), array_fill('1 hour'::interval, array[400]))
group by outcome;
select lapse(coupon => 'BOUND');
select honcho_claim('ann', 'BOUND');
select remaining_amount, held_amount from coupons where name = 'BOUND';

-- The sweep takes back up to a number, over all coupons.
select honcho_expire(50);
select honcho_expire(200);
select honcho_expire();
select honcho_expire();
select count(*) from holds where expires_at < clock_timestamp();

-- Window and pause refuse a new hold; what is held may be confirmed, and claimed by the holder, until it expires.
select honcho_create_coupon('WINDOW', 9);
select outcome from honcho_reserve('ann', 'WINDOW', '1 hour');
select outcome from honcho_reserve('bob', 'WINDOW', '1 hour');
select outcome from honcho_reserve('joe', 'WINDOW', '1 hour');
update coupons set paused = true where name = 'WINDOW';
select outcome from honcho_reserve('eve', 'WINDOW', '1 hour');
select outcome from honcho_reserve('ann', 'WINDOW', '1 hour');
select honcho_confirm('ann', 'WINDOW');
update coupons set paused = false, ends_at = '2020-01-01' where name = 'WINDOW';
select outcome from honcho_reserve('eve', 'WINDOW', '1 hour');
select honcho_claim('eve', 'WINDOW'), honcho_claim('bob', 'WINDOW');
update coupons set starts_at = 'infinity', ends_at = null where name = 'WINDOW';
select outcome, expires_at from honcho_reserve('eve', 'WINDOW', '1 hour');
select lapse('joe');
select honcho_claim('joe', 'WINDOW'), honcho_confirm('joe', 'WINDOW');
select * from books where name = 'WINDOW';

-- A hold that is made late in a long transaction lives as long as one that is made early.
select honcho_create_coupon('LONG', 1);
begin;
select pg_sleep(1.2);
select outcome, expires_at > clock_timestamp() + interval '0.9 seconds' as whole from honcho_reserve('ann', 'LONG', '1 second');
select honcho_confirm('ann', 'LONG');
commit;

-- Whoever raises a refusal learns that stock may come back.
select honcho_create_coupon('RAISE', 1);
select outcome from honcho_reserve('ann', 'RAISE', '1 hour');
\set VERBOSITY sqlstate
select honcho_claim_or_raise('bob', 'RAISE');
\set VERBOSITY default

-- Even if the stock does not count a claim, its user gets no hold beside it, and can release it.
select honcho_create_coupon('SPOILT', 2);
insert into claims (user_id, coupon_name) values ('ann', 'SPOILT');
select outcome from honcho_reserve('ann', 'SPOILT', '1 hour');
select honcho_confirm('ann', 'SPOILT');
update coupons set amount = 3 where name = 'SPOILT';
select honcho_release('ann', 'SPOILT');

-- The lifetimes that are allowed.
select outcome from honcho_reserve('bob', 'LONG', '24 hours');
select outcome from honcho_reserve('short', 'HOLDER', '1 second');
select outcome from honcho_reserve('one day', 'HOLDER', '1 day');

select * from honcho_verify() where not holds;
drop view books;
drop function lapse;
drop extension honcho;
