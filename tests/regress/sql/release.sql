-- A release gives a claim's piece back to the stock.
create extension honcho;
\set VERBOSITY terse
\pset format unaligned
\pset footer off

select honcho_create_coupon('PROMO', 2);
select honcho_release('ann', 'NONE') as not_found, honcho_release('ann', 'PROMO') as not_claimed;
select * from honcho_claim_batch('PROMO', array['ann', 'bob', 'eve']);
-- Repeating it is safe, and gives back one piece.
select honcho_release('ann', 'PROMO') as first, honcho_release('ann', 'PROMO') as again;
select amount, remaining_amount, held_amount from coupons;
select honcho_claim('eve', 'PROMO') as eve, honcho_claim('ann', 'PROMO') as ann;
-- The user may claim again, as often as there is stock.
select honcho_release('bob', 'PROMO'), honcho_claim('ann', 'PROMO'), honcho_release('ann', 'PROMO'), honcho_claim('ann', 'PROMO');
-- The new claim comes last.
select user_id from honcho_list_claims('PROMO');
select id = (select max(id) from claims) as newest from honcho_get_claim('ann', 'PROMO');
-- A hold is no claim.
select honcho_release('eve', 'PROMO');
select outcome from honcho_reserve('joe', 'PROMO', '1 hour');
select honcho_release('joe', 'PROMO');
-- Whatever window and pause are.
update coupons set paused = true, ends_at = '2020-01-01';
select honcho_release('ann', 'PROMO');
select honcho_release('ann', 'PROMO');
select amount, remaining_amount, held_amount from coupons;

-- In a transaction: it goes back with it, or with its savepoint.
update coupons set paused = false, ends_at = null;
select honcho_claim('ann', 'PROMO');
begin;
select honcho_release('ann', 'PROMO');
rollback;
begin;
savepoint s;
select honcho_release('ann', 'PROMO');
select honcho_claim('lee', 'PROMO');
rollback to s;
select honcho_claim('lee', 'PROMO');
commit;
select user_id from honcho_list_claims('PROMO');
do $$ begin
    perform honcho_release('ann', 'PROMO');
    raise 'no';
exception when raise_exception then
    raise notice 'caught; % left', (select remaining_amount from honcho_get_coupon('PROMO'));
end $$;
begin read only;
select honcho_release('kim', 'PROMO');
savepoint s;
select honcho_release('ann', 'PROMO');
rollback;
begin;
select honcho_release('ann', 'PROMO');
prepare transaction 'release';
set lock_timeout = '50ms';
select honcho_restock('PROMO', 1);
reset lock_timeout;
rollback prepared 'release';
select honcho_release('ann', 'PROMO');

-- A trigger that keeps the claim is an error, and nothing is done.
select honcho_claim('ann', 'PROMO');
create function keep() returns trigger language plpgsql as $$ begin return null; end $$;
create trigger keep before delete on claims for each row execute function keep();
select honcho_release('ann', 'PROMO');
drop trigger keep on claims;
drop function keep;
select user_id from honcho_list_claims('PROMO');

select * from honcho_verify() where not holds;
drop extension honcho;
