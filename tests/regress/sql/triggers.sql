-- A claim fires the users' own row triggers.
create extension honcho;
\set VERBOSITY terse
\pset footer off
select honcho_create_coupon('PROMO', 5);
create table log (entry int generated always as identity, what text);
create function log_row() returns trigger language plpgsql as $$
begin
    insert into public.log (what) values (format('%s %s %s %s', tg_when, tg_op, tg_table_name,
        coalesce(to_jsonb(new) ->> 'user_id', to_jsonb(new) ->> 'remaining_amount')));
    return new;
end $$;
create trigger before_claim before insert on claims for each row execute function log_row();
create trigger after_claim after insert on claims for each row execute function log_row();
create trigger before_stock before update on coupons for each row execute function log_row();
create trigger after_stock after update on coupons for each row execute function log_row();
create constraint trigger at_commit after insert on claims deferrable initially deferred
    for each row execute function log_row();

select honcho_claim('ann', 'PROMO');
select what from log order by entry;
truncate log;
select * from honcho_claim_batch('PROMO', array['bob', 'ann', 'eve']);
select what from log order by entry;

-- A trigger that objects takes the claim back.
create function refuse() returns trigger language plpgsql as $$
begin
    if new.user_id = 'mallory' then
        raise 'not you';
    end if;
    return new;
end $$;
create trigger refuse after insert on claims for each row execute function refuse();
select honcho_claim('mallory', 'PROMO');
select * from honcho_claim_batch('PROMO', array['joe', 'mallory']);
select * from honcho_verify();

drop trigger refuse on claims;

-- A trigger that suppresses a write takes the claim back: nobody is told "claimed" without one.
create function suppress() returns trigger language plpgsql as 'begin return null; end';
create trigger suppress before insert on claims for each row execute function suppress();
select honcho_claim('kim', 'PROMO');
drop trigger suppress on claims;
create trigger suppress before update on coupons for each row execute function suppress();
select honcho_claim('kim', 'PROMO');
drop trigger suppress on coupons;

-- One that writes what was there before, too, for it returns the old row.
create function keep_old() returns trigger language plpgsql as 'begin return old; end';
create trigger keep_old before update on coupons for each row execute function keep_old();
select honcho_claim('kim', 'PROMO');
drop trigger keep_old on coupons;
-- It may restock in passing.
create function restock() returns trigger language plpgsql as $$
begin
    if new.remaining_amount = 1 then
        new.amount := new.amount + 1;
        new.remaining_amount := new.remaining_amount + 1;
    end if;
    return new;
end $$;
create trigger restock before update on coupons for each row execute function restock();
begin;
select honcho_claim('kim', 'PROMO');
select amount, remaining_amount from coupons;
rollback;
drop trigger restock on coupons;
-- One that makes another claim of it takes it back.
create function rename() returns trigger language plpgsql as
    $$ begin new.user_id := 'someone else'; return new; end $$;
create trigger rename before insert on claims for each row execute function rename();
select honcho_claim('kim', 'PROMO');
select * from honcho_claim_batch('PROMO', array['kim', 'someone else']);
drop trigger rename on claims;
create function undo() returns trigger language plpgsql as
    $$ begin delete from public.claims where id = new.id; return null; end $$;
create trigger undo after insert on claims for each row execute function undo();
select honcho_claim('kim', 'PROMO');
drop trigger undo on claims;
-- So does one that takes the claim's coupon away.
create function move() returns trigger language plpgsql as
    $$ begin new.coupon_name := 'NOWHERE'; return new; end $$;
create trigger move before insert on claims for each row execute function move();
select honcho_claim('kim', 'PROMO');
drop trigger move on claims;
create function remove() returns trigger language plpgsql as
    $$ begin delete from public.coupons where name = new.name; return null; end $$;
select honcho_create_coupon('LAST', 1);
create trigger remove after update on coupons for each row when (new.remaining_amount = 0)
    execute function remove();
select honcho_claim('kim', 'LAST');
drop trigger remove on coupons;
create function remove_coupon() returns trigger language plpgsql as
    $$ begin delete from public.coupons where name = new.coupon_name; return null; end $$;

create function rename_coupon() returns trigger language plpgsql as
    $$ begin new.name := 'RENAMED'; return new; end $$;
create trigger rename_coupon before update on coupons for each row execute function rename_coupon();
select honcho_claim('kim', 'LAST');
select honcho_claim('kim', 'PROMO');
drop trigger rename_coupon on coupons;
create trigger remove after insert on claims for each row execute function remove_coupon();
select honcho_claim('kim', 'LAST');
drop trigger remove on claims;

-- Foreign keys of the users' own hold, to whatever column and from whatever.
alter table claims add column base text generated always as (nullif(split_part(user_id, ':', 2), '')) stored;
alter table claims add constraint base_exists foreign key (base) references coupons (name);
select honcho_claim('u:GHOST', 'PROMO');
begin;
select honcho_claim('u:PROMO', 'PROMO');
rollback;
alter table claims drop column base;
alter table coupons add unique (id, remaining_amount);
create table child (id bigint, rem int,
    foreign key (id, rem) references coupons (id, remaining_amount) on update cascade);
insert into child select id, remaining_amount from coupons where name = 'LAST';
begin;
select honcho_claim('kim', 'LAST');
select rem from child;
rollback;
drop table child;

-- A column that a claim leaves null has its say as well.
create domain required as text default 'x' constraint not_null not null;
alter table claims add column note required;
select honcho_claim('kim', 'LAST');
create function note() returns trigger language plpgsql as $$ begin new.note := 'y'; return new; end $$;
create trigger note before insert on claims for each row execute function note();
begin;
select honcho_claim('kim', 'LAST');
rollback;
drop trigger note on claims;
alter table claims drop column note;

-- Checks of the users' own hold, whatever they call and however often they fail.
create function is_welcome(user_id text) returns boolean language sql as
    $$ select 1 / length(replace(user_id, 'mallory', '')) >= 0; select true $$;
alter table claims add constraint welcome check (public.is_welcome(user_id));
begin;
select honcho_claim('lee', 'PROMO');
savepoint before;
select honcho_claim('mallory', 'PROMO');
rollback to before;
select honcho_claim('joe', 'LAST');
commit;
create or replace function is_welcome(user_id text) returns boolean language sql as 'select false';
select honcho_create_coupon('NEXT', 5);
select honcho_claim('lee', 'NEXT');
alter table claims drop constraint welcome;
select honcho_claim('lee', 'NEXT');
-- One that counts sees the rows of its own batch.
create function are_few(name text) returns boolean language sql as
    $$ select count(*) < 3 from public.claims where coupon_name = name $$;
alter table claims add constraint few check (public.are_few(coupon_name)) not valid;
select honcho_claim_batch('NEXT', '{ann,bob,cid}');
alter table claims drop constraint few;
-- Triggers see the event of the change.
create function look() returns trigger language plpgsql as
    $$ begin raise notice '%', (select kind from public.coupon_events order by id desc limit 1); return null; end $$;
create trigger look after update on coupons for each row execute function look();
select honcho_release('lee', 'NEXT');
drop trigger look on coupons;
select honcho_claim('lee', 'NEXT');

-- The same of triggers that are alone.
drop trigger before_claim on claims;
drop trigger after_claim on claims;
drop trigger at_commit on claims;
drop trigger before_stock on coupons;
drop trigger after_stock on coupons;
create trigger rename before insert on claims for each row execute function rename();
select honcho_claim('kim', 'NEXT');
drop trigger rename on claims;
create trigger undo after insert on claims for each row execute function undo();
select honcho_claim('kim', 'NEXT');
drop trigger undo on claims;
select honcho_create_coupon('NEW', 1);
create trigger rename_coupon before update on coupons for each row execute function rename_coupon();
select honcho_claim('kim', 'NEW');
drop trigger rename_coupon on coupons;
create function complete() returns trigger language plpgsql as $$ begin new.claimed_at := 'epoch'; return new; end $$;
create trigger complete before insert on claims for each row execute function complete();
begin;
select * from honcho_claim_batch('NEXT', '{kim,kit,lee}');
select user_id, extract(epoch from claimed_at) from claims where user_id in ('kim', 'kit') and coupon_name = 'NEXT' order by user_id;
rollback;
drop trigger complete on claims;

-- What the claim's own statement has written is seen.
with paused as (update coupons set paused = true where name = 'NEXT' returning name)
    select honcho_claim('kim', name) from paused;
with resumed as (update coupons set paused = false where name = 'NEXT' returning name)
    select honcho_claim('kim', name) from resumed;
with removed as (delete from claims where user_id = 'kim' returning coupon_name)
    select honcho_claim('kim', coupon_name) from removed;
update coupons set remaining_amount = remaining_amount + 1 where name = 'NEXT';
select * from honcho_verify() where not holds;

drop extension honcho cascade;
drop table log;
drop domain required;
drop function log_row, refuse, suppress, keep_old, restock, rename, undo, move, remove, remove_coupon, rename_coupon,
    are_few, look, complete,
    note, is_welcome;
