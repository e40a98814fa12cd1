-- honcho_apply: operations of all kinds on one coupon, in order, in one turn.
create extension honcho;
\set VERBOSITY terse
\pset format unaligned
\pset footer off
create view books as
select amount, remaining_amount, held_amount,
       array(select concat_ws(' ', user_id, request_key) from claims where coupon_name = name order by id) as claims,
       array(select concat_ws(' ', user_id, request_key) from holds where coupon_name = name order by user_id) as holds
from coupons order by coupons.id;
-- Lets holds expire: those of a user, or of a coupon. The coupon's row has the first expiry too.
create function lapse(who text default '%', coupon text default '%') returns text language sql as $$
    update holds set expires_at = clock_timestamp() - interval '1 second' where user_id like who and coupon_name like coupon;
    update coupons set next_expiry = (select min(expires_at) from holds where coupon_name = name) where held_amount > 0;
    select 'lapsed' $$;

select honcho_create_coupon('PROMO', 3);
-- Each operation sees what those before it did.
select ordinal, outcome, expires_at > clock_timestamp() as live, replayed
from honcho_apply('PROMO',
    '{claim,claim,reserve,reserve,confirm,confirm,cancel,reserve,claim,claim,cancel,claim,release,release,claim}',
    '{ann,ann,bob,bob,bob,bob,bob,eve,joe,joe,eve,joe,ann,ann,lee}',
    array_fill('1 hour'::interval, array[15]));
select * from books;
-- No stock, then some of it is held: the answers say when the first hold expires.
select ordinal, outcome, round(extract(epoch from expires_at - clock_timestamp()) / 60) as minutes, replayed
from honcho_apply('PROMO', '{claim,release,reserve,claim,reserve,claim}', '{kim,bob,bob,kim,kim,bob}',
    array[null, null, '30 minutes', null, '1 hour', null]::interval[]);
select * from books;

-- Request keys.
select ordinal, outcome, replayed
from honcho_apply('PROMO', '{release,claim,claim,claim,claim,release,claim}', '{bob,kim,kim,kim,kim,kim,kim}', null,
    '{null,k1,k1,k2,null,null,k1}');
select ordinal, outcome, replayed from honcho_apply('PROMO', '{claim,claim}', '{kim,joe}', null, '{k1,k1}');
select ordinal, outcome, replayed
from honcho_apply('PROMO', '{release,reserve,confirm,claim}', '{kim,kim,kim,kim}', array[null, '1 hour', null, null]::interval[],
    '{null,k3,null,k3}');
select * from books;

-- An expired hold is none.
select honcho_create_coupon('LATE', 1);
select outcome from honcho_reserve('ann', 'LATE', '1 hour');
select lapse();
select ordinal, outcome, expires_at from honcho_apply('LATE', '{confirm,cancel}', '{ann,ann}');
select ordinal, outcome from honcho_apply('LATE', '{claim,confirm,claim}', '{bob,ann,ann}');
select kind, details from coupon_events where coupon_name = 'LATE' order by id;
select * from books;

-- If a coupon has few holds, they are read together: once with those alone, once with as many that are gone as to stop.
select honcho_create_coupon('FEW', 20);
select ordinal, outcome from honcho_apply('FEW', '{reserve,reserve,reserve}', '{ann,zoe,eve}', array_fill('1 hour'::interval, array[3]));
select ordinal, outcome from honcho_apply('FEW', '{claim,claim,cancel,claim,reserve}', '{kim,ann,eve,eve,joe}',
    array[null, null, null, null, '1 hour']::interval[]);
select * from books;
begin;
select count(*) from generate_series(1, 40) as i,
    lateral (select honcho_reserve('u' || i, 'FEW', '1 hour'), honcho_cancel('u' || i, 'FEW')) as gone;
select ordinal, outcome from honcho_apply('FEW', '{claim,claim,reserve,confirm}', '{lee,zoe,max,joe}',
    array[null, null, '1 hour', null]::interval[]);
commit;
select * from books;

-- Window and pause.
select honcho_create_coupon('PAUSED', 3);
select outcome from honcho_reserve('ann', 'PAUSED', '1 hour');
select outcome from honcho_reserve('bob', 'PAUSED', '1 hour');
select outcome from honcho_update_coupon('PAUSED', paused => true);
select ordinal, outcome, expires_at is not null as expiry
from honcho_apply('PAUSED', '{claim,reserve,reserve,confirm,claim,release,claim}', '{eve,eve,ann,ann,bob,bob,bob}',
    array_fill('1 hour'::interval, array[7]));

-- Nothing to do.
select * from honcho_apply('PROMO', '{}', '{}');
select * from honcho_apply('NONE', '{claim,reserve,confirm,cancel,release}', '{ann,ann,ann,ann,ann}',
    array_fill('1 hour'::interval, array[5]));

-- As many as allowed.
select honcho_create_coupon('BIG', 5000);
select outcome, count(*), min(ordinal), max(ordinal)
from honcho_apply('BIG', array_fill('reserve'::text, array[10000]), (select array_agg('u' || i order by i) from generate_series(1, 10000) i),
    array_fill('1 hour'::interval, array[10000]))
group by outcome order by outcome;
select outcome, count(*), min(ordinal), max(ordinal)
from honcho_apply('BIG', array_fill('confirm'::text, array[10000]), (select array_agg('u' || i order by i) from generate_series(1, 10000) i))
group by outcome order by outcome;
select outcome, count(*), min(ordinal), max(ordinal)
from honcho_apply('BIG', array_fill('release'::text, array[10000]), (select array_agg('u' || i order by i) from generate_series(1, 10000) i))
group by outcome order by outcome;
select kind, count(*) from coupon_events where coupon_name = 'BIG' group by kind order by kind;

-- Refusals write nothing.
begin read only;
select ordinal, outcome, pg_current_xact_id_if_assigned() is null as no_xid
from honcho_apply('PROMO', '{confirm,cancel,release}', '{nobody,nobody,nobody}');
savepoint s;
select * from honcho_apply('PROMO', '{confirm,release}', '{nobody,joe}');
rollback;

select * from honcho_verify() where not holds;
drop view books;
drop function lapse;
drop extension honcho;
