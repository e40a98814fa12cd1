-- Batches with users who have claimed.
create extension honcho;
\set VERBOSITY terse
\pset format unaligned
\pset tuples_only on
create view books as
select remaining_amount, held_amount, array(select user_id from claims order by id) as claims,
       (select bool_and(holds) from honcho_verify()) as hold,
       (select kind from coupon_events order by id desc limit 1) as last_event
from coupons;
select honcho_create_coupon('PROMO', 100);
select outcome from honcho_claim_batch('PROMO', '{ann,bob}');
select outcome from honcho_claim_batch('PROMO', '{eve,ann,joe,bob}');
select * from books;
-- A user with several operations: to release an earlier claim is not to release the one just made.
select outcome from honcho_apply('PROMO', '{claim,claim,release,claim,release}', '{leo,ann,ann,ann,bob}');
select * from books;
-- Operations of the user before, which change nothing.
select outcome from honcho_apply('PROMO', '{claim,confirm,claim,reserve,claim}', '{kim,ann,ann,eve,eve}',
                                 array[null, null, null, '1 hour', null]::interval[]);
select * from books;
-- A key of an earlier request.
select outcome, replayed from honcho_apply('PROMO', '{claim,claim}', '{max,oda}', null, '{m,o}');
select outcome, replayed from honcho_apply('PROMO', '{claim,claim,claim}', '{pat,oda,max}', null, '{p,o,other}');
select * from books;
-- Others' holds, and a claim out of one's own.
select outcome from honcho_reserve('quy', 'PROMO', '1 hour');
select outcome from honcho_reserve('ron', 'PROMO', '1 hour');
select outcome from honcho_apply('PROMO', '{claim,claim,claim,confirm,cancel}', '{sue,quy,sue,ann,ron}');
select outcome from honcho_apply('PROMO', '{claim,claim,reserve}', '{tom,ann,uma}', array[null, null, '1 hour']::interval[]);
select * from books;
-- As much stock as claims is not sold out in the end.
select outcome from honcho_update_coupon('PROMO', amount => (select amount - remaining_amount + 3 from coupons));
select outcome from honcho_claim_batch('PROMO', '{vic,ann,sam}');
select * from books;
-- A closed coupon.
select outcome from honcho_restock('PROMO', 10);
select outcome from honcho_update_coupon('PROMO', paused => true);
select outcome from honcho_apply('PROMO', '{release,claim,claim}', '{tom,ann,xia}');
select outcome from honcho_update_coupon('PROMO', paused => false);
-- Further keys of the operator's own, such as those of an index that is built anew meanwhile.
create unique index again on claims (coupon_name, user_id);
create unique index keys on claims (coupon_name, request_key);
select outcome, replayed from honcho_apply('PROMO', '{claim,claim,claim}', '{yan,oda,ann}', null, '{y,o,a}');
create unique index users on claims (lower(user_id));
select outcome from honcho_claim_batch('PROMO', '{zoe,ANN}');
select * from books;

drop extension honcho cascade;
