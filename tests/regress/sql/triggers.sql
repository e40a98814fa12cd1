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

drop extension honcho cascade;
drop table log;
drop function log_row, refuse;
