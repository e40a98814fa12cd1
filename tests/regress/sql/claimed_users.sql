-- Claims are inserted without a look for those that their users have: the key finds these, and what was inserted goes again.
create extension honcho;
\set VERBOSITY terse
\pset format unaligned
\pset tuples_only on
select honcho_create_coupon('PROMO', 100);
select outcome from honcho_claim_batch('PROMO', '{ann,bob}');
create view books as
select remaining_amount, held_amount, array(select user_id from claims order by id) as claims,
       (select bool_and(holds) from honcho_verify()) as hold
from coupons;
-- The number of claims that were inserted since the last time, those that went again included.
create table seen (id bigint);
insert into seen select last_value from claims_id_seq;
create function inserted() returns bigint language sql as
$$ with now as (update seen set id = (select last_value from claims_id_seq) returning id)
   select (select id from now) - id from seen $$;

select outcome from honcho_claim_batch('PROMO', '{eve,ann,joe,bob}');
select * from books;
select inserted();
-- Then users are looked up for a while.
select outcome from honcho_claim_batch('PROMO', '{kim,ann,eve}');
select * from books;
select inserted();

-- A user with several operations is looked up: to release an earlier claim is not to release the one just made.
\c
select outcome from honcho_apply('PROMO', '{claim,claim,release,claim,release}', '{leo,ann,ann,ann,bob}');
select * from books;
select inserted();
-- Operations of the user before, which change nothing.
\c
select outcome from honcho_apply('PROMO', '{claim,confirm,claim,reserve,claim}', '{ned,ann,ann,eve,eve}',
                                 array[null, null, null, '1 hour', null]::interval[]);
select * from books;
select inserted();
-- A key of an earlier request.
select outcome, replayed from honcho_apply('PROMO', '{claim,claim}', '{max,oda}', null, '{m,o}');
\c
select outcome, replayed from honcho_apply('PROMO', '{claim,claim,claim}', '{pat,oda,max}', null, '{p,o,other}');
select * from books;
select inserted();
-- Others' holds, and a claim out of one's own.
select outcome from honcho_reserve('quy', 'PROMO', '1 hour');
select outcome from honcho_reserve('ron', 'PROMO', '1 hour');
\c
select outcome from honcho_apply('PROMO', '{claim,claim,claim,confirm,cancel}', '{sue,quy,sue,ann,ron}');
select outcome from honcho_apply('PROMO', '{claim,claim,reserve}', '{tom,ann,uma}', array[null, null, '1 hour']::interval[]);
select * from books;
select inserted();

-- With a look each: as much stock as claims, which is not sold out in the end,
\c
select outcome from honcho_update_coupon('PROMO', amount => (select amount - remaining_amount + 3 from coupons));
select outcome from honcho_claim_batch('PROMO', '{vic,ann,wil}');
select remaining_amount, (select kind from coupon_events order by id desc limit 1) from coupons;
select inserted();
select outcome from honcho_restock('PROMO', 20);
-- a coupon that is closed,
\c
select outcome from honcho_update_coupon('PROMO', paused => true);
select outcome from honcho_apply('PROMO', '{release,claim,claim}', '{tom,ann,xia}');
select inserted();
select outcome from honcho_update_coupon('PROMO', paused => false);
-- in a transaction block,
\c
begin;
select outcome from honcho_claim_batch('PROMO', '{bob,ann,eve}');
commit;
select inserted();
-- under a shared snapshot,
\c
set default_transaction_isolation = 'repeatable read';
select outcome from honcho_claim_batch('PROMO', '{wes,ann,eve,joe}');
reset default_transaction_isolation;
select inserted();
-- with columns that are computed, and with triggers of users.
\c
alter table claims add computed text generated always as (upper(user_id)) stored;
select outcome from honcho_claim_batch('PROMO', '{xia,ann}');
select inserted();
select computed from claims where user_id = 'xia';
alter table claims drop computed;
create function nothing() returns trigger language plpgsql as $$ begin return new; end $$;
\c
create trigger nothing before insert on claims for each row execute function nothing();
select outcome from honcho_claim_batch('PROMO', '{yan,ann}');
select inserted();
drop trigger nothing on claims;
-- Another key, of the operator's own, refuses as ever.
\c
create unique index on claims (lower(user_id));
select outcome from honcho_claim_batch('PROMO', '{zoe,ANN}');
drop index claims_lower_idx;
select outcome from honcho_claim_batch('PROMO', '{zoe,ann}');
select * from books;

drop table seen;
drop function inserted(), nothing();
drop extension honcho cascade;
