-- The outcomes of a claim, and their precedence.
create extension honcho;
\pset format unaligned
\pset footer off

select honcho_create_coupon('PROMO', 2), honcho_create_coupon('PROMO', 5) as taken;
select honcho_claim('ann', 'PROMO');
select honcho_claim('ann', 'PROMO');
select honcho_claim('bob', 'PROMO');
select honcho_claim('eve', 'PROMO');
select honcho_claim('eve', 'NONE');
select id, name, amount, remaining_amount, starts_at, ends_at, paused from honcho_get_coupon('PROMO');
select id, user_id, coupon_name from honcho_get_claim('bob', 'PROMO');
select id, user_id, coupon_name from honcho_get_claim('eve', 'PROMO');
select id, user_id from honcho_list_claims('PROMO');
select id, user_id from honcho_list_claims('PROMO', after => 1);
select id, user_id from honcho_list_claims('PROMO', max => 1);
select * from honcho_get_coupon('NONE');
select * from honcho_list_claims('NONE');

-- not_found, already_claimed, then window and pause, then sold_out.
select honcho_create_coupon('LATER', 1, starts_at => 'infinity');
select honcho_create_coupon('OVER', 1, '2020-01-01', '2020-01-02');
select honcho_create_coupon('NOW', 1, '2020-01-01', 'infinity');
select honcho_create_coupon('PAUSED', 1);
select honcho_claim('ann', 'PAUSED');
update coupons set paused = true where name = 'PAUSED';
select honcho_claim('ann', 'LATER') as later, honcho_claim('ann', 'OVER') as over,
       honcho_claim('ann', 'NOW') as now,
       honcho_claim('ann', 'PAUSED') as mine, honcho_claim('bob', 'PAUSED') as paused;
update coupons set ends_at = '2020-01-02' where name = 'NOW';
select honcho_claim('ann', 'NOW') as mine, honcho_claim('bob', 'NOW') as ended;
update coupons set paused = true, starts_at = 'infinity', ends_at = null where name = 'NOW';
select honcho_claim('bob', 'NOW') as not_started;

-- Several claims in one statement see each other.
select honcho_create_coupon('STATEMENT', 3);
select u, honcho_claim(u, 'STATEMENT') from unnest(array['ann', 'ann', 'bob', 'eve', 'eve', 'joe']) u;

-- A batch: one outcome per user in order; the first ones get what is left.
select honcho_create_coupon('BATCH', 3);
select honcho_claim('ann', 'BATCH');
select * from honcho_claim_batch('BATCH', array['bob', 'ann', 'bob', 'eve', 'joe', 'joe', 'bob']);
select * from honcho_claim_batch('BATCH', array['joe', 'ann']);
select * from honcho_claim_batch('BATCH', '{}');
select * from honcho_claim_batch('NONE', array['ann', 'bob']);
select * from honcho_claim_batch('BATCH', array[['ann', 'bob'], ['joe', 'eve']]);
select honcho_claim_batch('BATCH', array['eve', 'joe']);
select user_id from honcho_list_claims('BATCH');
select honcho_create_coupon('BIG', 9999);
select outcome, count(*), min(ordinal), max(ordinal)
from honcho_claim_batch('BIG', (select array_agg('u' || i order by i) from generate_series(1, 10000) i))
group by outcome order by outcome;

-- The coupons, in the order of their creation.
select name, amount, remaining_amount, starts_at, paused from honcho_list_coupons(max => 3);
select next.name from honcho_get_coupon('LATER') as last, honcho_list_coupons(last.id, 2) as next;
select count(*), array_agg(id) = array_agg(id order by id) as in_order from honcho_list_coupons();
select * from honcho_list_coupons(after => 9223372036854775807);

-- Names are compared as bytes; any characters will do.
select honcho_create_coupon('promo', 1), honcho_create_coupon('PROMO ', 1), honcho_create_coupon('50% "off"''', 1),
       honcho_create_coupon('🎟', 1), honcho_create_coupon(repeat('é', 255), 1);
select honcho_claim('ann', 'promo') as lower, honcho_claim('ANN', 'promo') as other_user,
       honcho_claim('ann', 'PROMO ') as space, honcho_claim('ann', '50% "off"''') as quotes,
       honcho_claim('🙂', '🎟') as emoji, honcho_claim(repeat('é', 255), repeat('é', 255)) as long;

-- For callers who want a refusal to abort their transaction.
create function pg_temp.attempt(statement text) returns text language plpgsql as $$
declare result text;
begin
    execute statement into result;
    return result;
exception when others then
    return sqlstate || ': ' || sqlerrm;
end $$;
select pg_temp.attempt(format('select honcho_claim_or_raise(%L, %L)', user_id, coupon)) from (values
    ('new', 'NONE'), ('ann', 'PROMO'), ('new', 'PROMO'), ('new', 'LATER'), ('new', 'OVER'), ('new', 'PAUSED'))
    as refused (user_id, coupon);
select honcho_create_coupon('RAISE', 1);
select honcho_claim_or_raise('ann', 'RAISE') = (select id from honcho_get_claim('ann', 'RAISE')) as id;

select * from honcho_verify() where not holds;
drop extension honcho;
