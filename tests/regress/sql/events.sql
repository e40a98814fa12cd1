-- Events: one for each rare thing that happens to a coupon, in their order, with who did it.
create extension honcho;
\set VERBOSITY terse
\pset format unaligned
\pset footer off
set timezone = 'UTC';
create view told as select coupon_name, kind, details, actor = session_user as by_session from coupon_events order by id;
-- Lets holds expire: those of a user, or of a coupon. The coupon's row has the first expiry too.
create function lapse(who text default '%', coupon text default '%') returns text language sql as $$
    update holds set expires_at = clock_timestamp() - interval '1 second' where user_id like who and coupon_name like coupon;
    update coupons set next_expiry = (select min(expires_at) from holds where coupon_name = name) where held_amount > 0;
    select 'lapsed' $$;

-- Each kind.
select honcho_create_coupon('PROMO', 2), honcho_create_coupon('LATER', 1, '2100-01-01', '2100-02-01'),
       honcho_create_coupon('PROMO', 9) as taken;
select honcho_claim('ann', 'PROMO');
select honcho_claim('bob', 'PROMO'), honcho_claim('eve', 'PROMO') as sold_out;
select honcho_release('ann', 'PROMO'), honcho_release('ann', 'PROMO') as again;
select outcome from honcho_reserve('eve', 'PROMO', '1 hour');
select honcho_cancel('eve', 'PROMO');
select outcome from honcho_update_coupon('PROMO', paused => true);
select outcome from honcho_update_coupon('PROMO', paused => true);
select outcome from honcho_update_coupon('PROMO', paused => false);
select outcome from honcho_update_coupon('PROMO', starts_at => '2020-01-01', ends_at => '2100-01-01');
select outcome from honcho_update_coupon('PROMO', ends_at => '2100-02-01');
select outcome from honcho_update_coupon('PROMO', starts_at => '-infinity');
select outcome from honcho_update_coupon('PROMO', ends_at => '2100-02-01');
select outcome from honcho_update_coupon('PROMO');
select outcome from honcho_restock('PROMO', 3);
select outcome from honcho_update_coupon('PROMO', 2);
select outcome from honcho_update_coupon('PROMO', 0) as below_given;
select outcome from honcho_restock('PROMO', -1);
select outcome from honcho_restock('PROMO', 1);
select outcome from honcho_reserve('eve', 'PROMO', '1 hour');
select lapse();
select honcho_expire(), honcho_expire();
select honcho_delete_coupon('PROMO') as in_use;
select honcho_delete_coupon('PROMO', true);
select honcho_delete_coupon('LATER');
select * from told;

-- Never one for a claim or a hold that leaves stock.
select honcho_purge_events(clock_timestamp());
select honcho_create_coupon('QUIET', 9);
select honcho_claim('ann', 'QUIET');
select outcome from honcho_reserve('bob', 'QUIET', '1 hour');
select honcho_confirm('bob', 'QUIET');
select outcome from honcho_reserve('eve', 'QUIET', '1 hour');
select honcho_cancel('eve', 'QUIET');
select kind from told;
-- Nor for a piece that passes from an expired hold to a claim; but for the sweep.
select outcome from honcho_update_coupon('QUIET', 2);
select honcho_release('ann', 'QUIET');
select outcome from honcho_reserve('joe', 'QUIET', '1 hour');
select lapse();
select honcho_claim('eve', 'QUIET');
select kind, details from told;

-- In a transaction: with it or not at all.
select honcho_purge_events(clock_timestamp());
begin;
select outcome from honcho_restock('QUIET', 1);
savepoint s;
select outcome from honcho_restock('QUIET', 2);
rollback to s;
select outcome from honcho_restock('QUIET', 3);
-- Not listed before it is durable.
select kind from honcho_list_events();
commit;
begin;
select outcome from honcho_restock('QUIET', 4);
rollback;
select kind, details from honcho_list_events();

-- Who did it: the session's user, with a label if the session has one. A caller's rights do not change it.
create role regress_honcho_shop login;
grant execute on all functions in schema public to regress_honcho_shop;
select honcho_purge_events(clock_timestamp());
set honcho.actor = 'till 7';
select outcome from honcho_restock('QUIET', 1);
set role regress_honcho_shop;
select outcome from honcho_restock('QUIET', 1);
set honcho.actor = '';
select outcome from honcho_restock('QUIET', 1);
reset role;
set session authorization regress_honcho_shop;
select outcome from honcho_restock('QUIET', 1);
set honcho.actor = 'api';
select honcho_release('eve', 'QUIET');
select ordinal, outcome from honcho_apply('QUIET', '{claim,release,release}', '{eve,eve,bob}', actors => '{a,b,null}');
reset session authorization;
-- A label has at most 255 characters, and no control characters.
set honcho.actor = E'two\nlines\tand more\b';
select outcome from honcho_restock('QUIET', 1);
select length(set_config('honcho.actor', repeat('é', 1000), false));
select outcome from honcho_restock('QUIET', 1);
reset honcho.actor;
select kind, replace(replace(actor, session_user::text, 'SESSION'), repeat('é', 255), 'é…') as actor, details
from coupon_events order by id;

-- Pages.
select honcho_create_coupon('OTHER', 1);
select honcho_claim('ann', 'OTHER');
select coupon_name, kind from honcho_list_events(coupon_name => 'OTHER');
select coupon_name, kind from honcho_list_events(coupon_name => 'OTHER', max => 1);
select coupon_name, kind from honcho_list_events((select id from honcho_list_events(0, 1, 'OTHER')), 10, 'OTHER');
select count(*) = (select count(*) from coupon_events) as all, bool_and(id > 0 and at <= clock_timestamp()) as good,
       array_agg(id) = array_agg(id order by id) as in_order
from honcho_list_events();
select count(*) from honcho_list_events(max => 2);
select count(*) from honcho_list_events(9223372036854775807);
select * from honcho_list_events(coupon_name => 'NONE');

-- Times are those of the clock, in the order of the ids.
begin;
select pg_sleep(0.01);
select outcome from honcho_restock('OTHER', 1);
select max(at) > now() as by_the_clock from coupon_events;
commit;

-- Under a snapshot of its own, a reader could miss what commits later.
begin isolation level repeatable read;
select * from honcho_list_events();
rollback;
begin isolation level serializable;
select * from honcho_list_events(coupon_name => 'OTHER');
rollback;

-- Purge: the oldest first, up to a number, nothing that is newer, and never the last one.
select honcho_purge_events('-infinity');
select honcho_purge_events(clock_timestamp(), 1);
select coupon_name, kind from coupon_events order by id limit 1;
select honcho_purge_events(clock_timestamp()) > 5 as some;
select count(*) from coupon_events;
select outcome from honcho_restock('OTHER', 1);
select kind from honcho_list_events();

drop view told;
select * from honcho_verify() where not holds;
drop owned by regress_honcho_shop;
drop role regress_honcho_shop;
drop function lapse;
drop extension honcho;
