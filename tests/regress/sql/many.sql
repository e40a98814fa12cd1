-- honcho_claim_many: several coupons in one transaction.
create extension honcho;
\set VERBOSITY terse
\pset format unaligned
\pset footer off
create view books as
select name, remaining_amount, held_amount,
       array(select user_id from claims where coupon_name = name order by id) as claims
from coupons order by coupons.id;
select honcho_create_coupon('A', 2), honcho_create_coupon('B', 1), honcho_create_coupon('C', 5);

select * from honcho_claim_many(
    array['ann', 'ann', 'ann', 'bob', 'bob', 'eve', 'joe', 'ann', 'joe'],
    array['C',   'A',   'A',   'A',   'B',   'A',   'B',   'X',   'C']);
select * from books;
select * from honcho_claim_many(array['ann', 'eve'], array['A', 'B']);
select * from honcho_claim_many('{}', '{}');
select * from honcho_claim_many(array['ann'], array['X']);

-- Holds: its holder gets the claim out of it, and a coupon of which all is held says so.
select outcome from honcho_reserve('kim', 'C', '1 hour');
select outcome from honcho_restock('B', 1);
select outcome from honcho_reserve('kim', 'B', '1 hour');
select * from honcho_claim_many(array['kim', 'leo', 'leo', 'kim'], array['C', 'B', 'C', 'B'], wait => false);
select * from books;

-- With the transaction or not at all.
begin;
select outcome, count(*) from honcho_claim_many(array['max', 'max'], array['C', 'A']) group by outcome order by outcome;
savepoint s;
select * from honcho_claim_many(array['oda', 'oda'], array['C', 'B']);
rollback to s;
select * from honcho_claim_many(array['max', 'oda'], array['C', 'C']);
rollback;
select * from books;
-- One error, and nothing is written, on any coupon.
create function no_mallory() returns trigger language plpgsql as
$$ begin if new.user_id = 'mallory' then raise 'no'; end if; return new; end $$;
create trigger no_mallory before insert on claims for each row execute function no_mallory();
select outcome from honcho_restock('A', 5);
select * from honcho_claim_many(array['pat', 'mallory', 'pat'], array['A', 'C', 'C']);
select * from books;

-- Arguments.
select * from honcho_claim_many(null, array['A']);
select * from honcho_claim_many(array['ann'], null);
select * from honcho_claim_many(array['ann', 'bob'], array['A']);
select * from honcho_claim_many(array['ann', null], array['A', 'A']);
select * from honcho_claim_many(array['ann', 'bob'], array['A', '']);
select * from honcho_claim_many(array['ann'], array[repeat('x', 256)]);
select * from honcho_claim_many(array['ann'], array['A'], null);
select * from honcho_claim_many(array_fill('u'::text, array[10001]), array_fill('A'::text, array[10001]));
begin read only;
select * from honcho_claim_many(array['ann', 'eve'], array['A', 'B']);
select * from honcho_claim_many(array['ann', 'zoe'], array['A', 'C']);
rollback;
select * from honcho_verify() where not holds;
drop extension honcho cascade;
