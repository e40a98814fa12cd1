-- Request keys: the same user, coupon and key is the same request, and has the same answer.
create extension honcho;
\pset format unaligned
\pset footer off

select honcho_create_coupon('PROMO', 3), honcho_create_coupon('OTHER', 3);
select honcho_claim('ann', 'PROMO', 'k1') as first, honcho_claim('ann', 'PROMO', 'k1') as replay,
       honcho_claim('ann', 'PROMO', 'k2') as other_key, honcho_claim('ann', 'PROMO', null) as no_key,
       honcho_claim('ann', 'PROMO') as none;
-- Keys of one user mean nothing for another, nor for another coupon. They are compared as bytes.
select honcho_claim('bob', 'PROMO', 'k1') as bob, honcho_claim('ann', 'OTHER', 'k1') as other,
       honcho_claim('ann', 'PROMO', 'K1') as upper, honcho_claim('ann', 'PROMO', 'k1 ') as space;
-- A claim without a key has no replay.
select honcho_claim('eve', 'PROMO') as first, honcho_claim('eve', 'PROMO', 'k1') as later;
select user_id, coupon_name, request_key from claims order by id;

-- A refusal is not kept.
select honcho_claim('joe', 'PROMO', 'k1');
select outcome from honcho_restock('PROMO', 1);
select honcho_claim('joe', 'PROMO', 'k1') as now, honcho_claim('joe', 'PROMO', 'k1') as replay;
-- A replay is answered whatever window, pause and stock are.
update coupons set paused = true, ends_at = '2020-01-01' where name = 'PROMO';
select honcho_claim('joe', 'PROMO', 'k1') as replay, honcho_claim('joe', 'PROMO', 'k2') as mine,
       honcho_claim('lee', 'PROMO', 'k1') as ended;
update coupons set paused = false, ends_at = null where name = 'PROMO';
-- With the claim, the key is forgotten.
select honcho_release('joe', 'PROMO');
select honcho_claim('lee', 'PROMO', 'k9') as lee, honcho_claim('joe', 'PROMO', 'k1') as joe;
select honcho_release('lee', 'PROMO'), honcho_claim('lee', 'PROMO', 'k8') as again, honcho_claim('lee', 'PROMO', 'k9') as old_key;

-- Batches.
select * from honcho_claim_batch('OTHER', array['ann', 'bob', 'bob', 'bob', 'eve'], array['k1', 'k1', 'k1', 'k2', null]);
select * from honcho_claim_batch('OTHER', array['ann', 'bob', 'eve', 'joe'], array['k1', 'k1', null, 'k1']);
select * from honcho_claim_batch('OTHER', '{}', '{}');
select * from honcho_claim_batch('NONE', array['ann'], array['k1']);
select user_id, coupon_name, request_key from claims where coupon_name = 'OTHER' order by id;

-- The key of a hold goes with it into the claim.
select honcho_create_coupon('HELD', 9);
select outcome from honcho_reserve('ann', 'HELD', '1 hour', 'k1');
select outcome from honcho_reserve('ann', 'HELD', '1 hour', 'k2');
select outcome from honcho_reserve('bob', 'HELD', '1 hour', 'k1');
select outcome from honcho_reserve('eve', 'HELD', '1 hour', 'k1');
select outcome from honcho_reserve('joe', 'HELD', '1 hour');
select user_id, request_key from holds order by user_id;
select honcho_confirm('ann', 'HELD') as confirmed, honcho_claim('bob', 'HELD') as no_key, honcho_claim('eve', 'HELD', 'k5') as own_key,
       honcho_claim('joe', 'HELD', 'k6') as key;
select user_id, request_key from claims where coupon_name = 'HELD' order by id;
select honcho_claim('ann', 'HELD', 'k1') as ann, honcho_claim('bob', 'HELD', 'k1') as bob, honcho_claim('eve', 'HELD', 'k1') as eve,
       honcho_claim('eve', 'HELD', 'k5') as eve5;

-- Any characters will do, up to 255 of them.
select honcho_claim('long', 'HELD', repeat('é', 255)) as first, honcho_claim('long', 'HELD', repeat('é', 255)) as replay;

-- A replay writes nothing, and is answered in a read-only transaction.
begin read only;
select honcho_claim('long', 'HELD', repeat('é', 255)), pg_current_xact_id_if_assigned() is null as no_xid;
commit;
-- In its own transaction too.
begin;
select honcho_claim('tx', 'HELD', 'k1') as first, honcho_claim('tx', 'HELD', 'k1') as replay;
rollback;
select honcho_claim('tx', 'HELD', 'k1') as first;

select * from honcho_verify() where not holds;
drop extension honcho;
