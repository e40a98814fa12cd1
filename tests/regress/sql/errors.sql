-- Errors from below a claim arrive whole and name the coupon; refusals as errors can be told apart.
create extension honcho;
\set VERBOSITY terse
\pset footer off

-- Runs a statement, and shows the fields of its error that do not depend on PostgreSQL's source.
create function fields(sql text) returns table (field text, value text) language plpgsql as $$
declare
    sqlstate_ text; message text; detail text; hint text; schema_ text; table_ text; column_ text;
    constraint_ text; context text;
begin
    execute sql;
exception when others then
    get stacked diagnostics
        sqlstate_ = returned_sqlstate, message = message_text, detail = pg_exception_detail,
        hint = pg_exception_hint, schema_ = schema_name, table_ = table_name, column_ = column_name,
        constraint_ = constraint_name, context = pg_exception_context;
    return query
        select fields.name, fields.said
        from (values ('sqlstate', sqlstate_), ('message', message), ('detail', detail), ('hint', hint),
                     ('schema', schema_), ('table', table_), ('column', column_),
                     ('constraint', constraint_), ('context', context)) as fields (name, said)
        -- A failing row has the time in it.
        where fields.said <> '' and fields.said not like 'Failing row%';
end $$;

select honcho_create_coupon('PROMO', 5), honcho_create_coupon('ONE', 1),
       honcho_create_coupon('LATER', 5, '2100-01-01'),
       honcho_create_coupon('OVER', 5, '2000-01-01', '2000-01-02'),
       honcho_create_coupon('OFF', 5);
update coupons set paused = true where name = 'OFF';
select honcho_claim('ann', 'PROMO'), honcho_claim('ann', 'ONE');

-- A trigger's own SQLSTATE, and all that it says.
create function refuse() returns trigger language plpgsql as $$
begin
    if new.user_id = 'mallory' then
        raise exception 'not you' using errcode = 'P0042', detail = 'a detail', hint = 'a hint',
            schema = 'a schema', table = 'a table', column = 'a column', constraint = 'a constraint';
    end if;
    return new;
end $$;
create trigger refuse before insert on claims for each row execute function refuse();
select * from fields($$select honcho_claim('mallory', 'PROMO')$$);
select * from fields($$select honcho_claim_batch('PROMO', array['bob', 'mallory'])$$);
select * from fields($$select honcho_claim_or_raise('mallory', 'PROMO')$$);

-- A trigger that claims: the inner claim's error passes through both.
create function claim_another() returns trigger language plpgsql as $$
begin
    if new.coupon_name = 'PROMO' and new.user_id = 'mallory' then
        perform public.honcho_claim(new.user_id, 'ONE');
    elsif new.coupon_name = 'PROMO' and new.user_id = 'trent' then
        perform public.honcho_claim(new.user_id, '');
    end if;
    return new;
end $$;
create trigger a_claim before insert on claims for each row execute function claim_another();
update coupons set amount = 2, remaining_amount = 1 where name = 'ONE';
select * from fields($$select honcho_claim('mallory', 'PROMO')$$);
select * from fields($$select honcho_claim('trent', 'PROMO')$$);
drop trigger a_claim on claims;
update coupons set amount = 1, remaining_amount = 0 where name = 'ONE';

-- A trigger that catches an error, and one that raises after that.
create or replace function refuse() returns trigger language plpgsql as $$
begin
    begin
        raise 'caught' using errcode = 'P0041', constraint = 'of the first';
    exception when sqlstate 'P0041' then
        if new.user_id = 'mallory' then
            raise 'caught' using errcode = 'P0043';
        end if;
    end;
    return new;
end $$;
select * from fields($$select honcho_claim('mallory', 'PROMO')$$);
select honcho_claim('bob', 'PROMO');
drop trigger refuse on claims;

-- A check that a user added, and a key that names the row.
alter table claims add constraint short check (length(user_id) < 20);
select * from fields($$select honcho_claim(repeat('x', 20), 'PROMO')$$);
alter table claims drop constraint short;
alter table coupons add constraint cheap check (amount < 1000);
select * from fields($$select honcho_create_coupon('DEAR', 1000)$$);
alter table coupons drop constraint cheap;

-- Refusals as errors.
select * from fields($$select honcho_claim_or_raise('ann', 'NOTHING')$$);
select * from fields($$select honcho_claim_or_raise('ann', 'PROMO')$$);
select * from fields($$select honcho_claim_or_raise('bob', 'ONE')$$);
select * from fields($$select honcho_claim_or_raise('bob', 'LATER')$$);
select * from fields($$select honcho_claim_or_raise('bob', 'OVER')$$);
select * from fields($$select honcho_claim_or_raise('bob', 'OFF')$$);
do $$
begin
    perform honcho_claim_or_raise('bob', 'NOTHING');
exception when no_data_found then raise notice 'no such coupon';
end $$;
do $$
begin
    perform honcho_claim_or_raise('bob', 'ONE');
exception when sqlstate 'UC001' then raise notice 'sold out';
end $$;

-- A bad argument has no context: nothing has begun.
select * from fields($$select honcho_claim('', 'PROMO')$$);

-- A misspelt setting of ours is refused once the library is loaded.
set honcho.early_lock_releese = off;
show honcho.early_lock_release;

select * from honcho_verify() where holds is not true;

drop extension honcho;
drop function fields, refuse, claim_another;
