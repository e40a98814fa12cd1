-- A claim is part of its caller's transaction.
create extension honcho;
\set VERBOSITY terse
\pset format unaligned
\pset footer off
create table orders (user_id text);
select honcho_create_coupon('PROMO', 5);

-- Both commit, or neither does.
begin;
insert into orders values ('ann');
select honcho_claim('ann', 'PROMO');
commit;
begin;
insert into orders values ('bob');
select honcho_claim('bob', 'PROMO');
rollback;
select (select remaining_amount from coupons), (select count(*) from claims) as claims,
       (select count(*) from orders) as orders;

-- A refusal is a value: the transaction goes on.
begin;
select honcho_claim('ann', 'PROMO');
insert into orders values ('ann again');
commit;
select count(*) from orders;

-- A claim inside a savepoint goes back with it, and what comes after stands.
begin;
select honcho_claim('bob', 'PROMO');
savepoint inner_work;
select honcho_claim('eve', 'PROMO');
select remaining_amount from honcho_get_coupon('PROMO');
rollback to inner_work;
select remaining_amount from honcho_get_coupon('PROMO');
select honcho_claim('joe', 'PROMO');
commit;
select user_id from honcho_list_claims('PROMO');

-- An error in the caller's statement takes the claim with it.
select honcho_claim('kim', 'PROMO')::text || (1 / 0);
do $$ begin
    perform honcho_claim('kim', 'PROMO');
    raise 'no';
exception when raise_exception then
    raise notice 'caught; % left', (select remaining_amount from honcho_get_coupon('PROMO'));
end $$;

-- Read-only transactions can be refused, but cannot claim.
begin read only;
select honcho_claim('ann', 'PROMO');
savepoint before;
select honcho_claim('kim', 'PROMO');
rollback to before;
commit;

-- Two-phase commit: the coupon stays locked until the transaction is resolved.
begin;
select honcho_claim('kim', 'PROMO');
prepare transaction 'claim';
set lock_timeout = '50ms';
select honcho_claim('lee', 'PROMO');
reset lock_timeout;
commit prepared 'claim';
select honcho_claim('kim', 'PROMO');

-- The caller's settings are as they were, whatever a claim does to its commit.
show synchronous_commit;
begin;
select honcho_claim('lee', 'PROMO');
show synchronous_commit;
commit;
show synchronous_commit;
set synchronous_commit = off;
begin;
select honcho_claim('lee', 'PROMO');
rollback;
show synchronous_commit;
reset synchronous_commit;

-- Cursors, prepared statements and functions with settings of their own.
select honcho_create_coupon('OTHER', 5);
prepare claim (text) as select honcho_claim($1, 'OTHER');
execute claim ('ann'); execute claim ('ann'); execute claim ('bob'); execute claim ('bob');
execute claim ('eve'); execute claim ('eve'); execute claim ('joe');
create function wrapped(user_id text) returns honcho_outcome
    language sql set search_path = public set work_mem = '1MB'
    begin atomic select honcho_claim(user_id, 'OTHER'); end;
select wrapped('kim'), wrapped('kim');
select wrapped('lee');

select * from honcho_verify() where not holds;
drop function wrapped;
drop table orders;
drop extension honcho;
