\echo Use "create extension honcho_router" to load this file. \quit

-- Three layers. The functions that callers use are in the extension's schema, and have names and signatures of honcho.
-- Each checks that it may commit on its own, calls a function of PL/Proxy in the schema honcho_router, and translates
-- its errors. That one calls honcho's function on the shard, in a schema of the same name as the extension's here.
-- PL/Proxy sends arguments as text. A shard reads a time in the style ISO as it is meant, whatever its own settings are,
-- and others by its own DateStyle.

do $$
begin
    if pg_catalog.getdatabaseencoding() operator(pg_catalog.<>) 'UTF8' then
        raise feature_not_supported using
            message = pg_catalog.concat('honcho_router works only in databases with the encoding UTF8, not ',
                                        pg_catalog.getdatabaseencoding());
    end if;
    if not exists (
        select from pg_catalog.pg_roles r where r.rolname operator(pg_catalog.=) 'honcho_router'
    ) then
        raise undefined_object using
            message = 'the role honcho_router does not exist',
            hint = 'The functions run as this role, and it connects to the shards: create role honcho_router.';
    end if;
end $$;

create schema honcho_router;
comment on schema honcho_router is 'Parts of the extension honcho_router, of which callers need place() and shard()';

create type @extschema@.honcho_outcome as enum (
    'claimed',
    'already_claimed',
    'sold_out',
    'not_found',
    'not_started',
    'ended',
    'paused',
    'all_held',
    'held',
    'not_held',
    'cancelled',
    'released',
    'not_claimed',
    'updated',
    'below_given',
    'deleted',
    'in_use'
);
comment on type @extschema@.honcho_outcome is
    'The result of an operation on a coupon: what was done, or the reason of its refusal';

-- Rows of functions whose columns have names of their arguments, which PL/pgSQL allows in a type only.
create type honcho_router.coupon as (
    id               bigint,
    name             text,
    amount           integer,
    remaining_amount integer,
    created_at       timestamptz,
    starts_at        timestamptz,
    ends_at          timestamptz,
    paused           boolean
);
create type honcho_router.stock as (
    name             text,
    amount           integer,
    remaining_amount integer,
    held_amount      integer,
    starts_at        timestamptz,
    ends_at          timestamptz,
    paused           boolean,
    state            text,
    next_expiry      timestamptz,
    last_claim_id    bigint
);
create type honcho_router.changed as (
    outcome          @extschema@.honcho_outcome,
    name             text,
    amount           integer,
    remaining_amount integer,
    held_amount      integer,
    starts_at        timestamptz,
    ends_at          timestamptz,
    paused           boolean,
    state            text
);
create type honcho_router.claim as (
    id               bigint,
    user_id          text,
    coupon_name      text,
    claimed_at       timestamptz
);
create type honcho_router.hold as (
    user_id          text,
    coupon_name      text,
    expires_at       timestamptz,
    created_at       timestamptz
);
create type honcho_router.event as (
    id               bigint,
    coupon_name      text,
    kind             text,
    at               timestamptz,
    actor            text,
    details          jsonb
);

-- Places --------------------------------------------------------------------------------------------------------------

-- The same in every language, and for ever: claims are where it says. A null name is an error of the shard's.
create function honcho_router.place(coupon_name text) returns integer
language sql stable parallel safe set search_path = pg_catalog, pg_temp as $$
    select get_byte(sha256(convert_to(coalesce(coupon_name, ''), 'UTF8')), 0)
$$;

create function honcho_router.shards() returns integer
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    shards integer := (
        select count(*)
        from pg_foreign_server s, pg_options_to_table(s.srvoptions) o
        where s.srvname = 'honcho' and o.option_name ~ '^p(artition_)?[0-9]+$'
    );
begin
    if shards = 0 then
        raise undefined_object using message = 'server "honcho" does not exist';
    end if;
    return shards;
end $$;

create function honcho_router.shard(coupon_name text) returns integer
language sql stable parallel safe security definer set search_path = pg_catalog, pg_temp as $$
    select honcho_router.place(coupon_name) % honcho_router.shards()
$$;

-- Protections ---------------------------------------------------------------------------------------------------------

create function honcho_router.guard(command text) returns void
language c volatile strict parallel unsafe as 'MODULE_PATHNAME', 'honcho_router_guard_wrapper';

-- Translates errors of PL/Proxy's own, which are all XX000, and a cancel of this session's statement while a shard may
-- be committing. Returns if the error is one that the shard has raised, or none of these. PL/Proxy has no SQLSTATE to
-- tell them apart, and does not translate its messages: they begin with the function and the shard's database, and
-- "(null)" stands for the fields that an error of libpq lacks.
create function honcho_router.fail(state text, message text, lost text, unsent text default '57P03') returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp as $$
begin
    if state = '57014' then
        if lost <> '08007' or message ~ '^[^ ]+\(\d+\): \[.*\] REMOTE ' then
            return;
        end if;
    elsif message ~ '^PL/Proxy function [^ ]+\(\d+\): \[[^]]*\] PQconnect(Start|Poll): ' then
        raise exception using
            errcode = unsent,
            message = 'a shard cannot be reached',
            detail = message;
    -- 57P01 and 57P02 are of a session on a shard that is shut down: this session could not catch its own. What ends a
    -- session may come after its commit, and has any SQLSTATE: a flush of the WAL that fails is a PANIC.
    elsif state not in ('57P01', '57P02')
        and message !~ '^PL/Proxy function |^[^ ]+\(\d+\): \[.*\] REMOTE (\(null\)|FATAL|PANIC): '
    then
        return;
    end if;
    raise exception using
        errcode = lost,
        message = case lost
            when '08007' then 'the answer of a shard is lost: the call may have been carried out'
            else 'the answer of a shard is lost'
        end,
        detail = message;
end $$;

-- A list of claims in the statement that has read its coupon ends where the coupon did: the shard was asked twice.
-- The setting ends with the transaction, and counts only in its statement.
create function honcho_router.note_seen(coupon_name text, last_claim_id bigint) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp as $$
begin
    perform set_config(
        'honcho_router.seen',
        concat_ws(' ', extract(epoch from statement_timestamp()), last_claim_id, coupon_name),
        true
    );
end $$;

create function honcho_router.last_seen(coupon_name text) returns bigint
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    seen text := current_setting('honcho_router.seen', true);
begin
    if split_part(seen, ' ', 1) = extract(epoch from statement_timestamp())::text
        and substr(seen, length(split_part(seen, ' ', 1)) + length(split_part(seen, ' ', 2)) + 3) = coupon_name
    then
        return split_part(seen, ' ', 2)::bigint;
    end if;
    return null;
end $$;

-- Calls of the shards -------------------------------------------------------------------------------------------------

-- Those that wait for other sessions take the caller's lock_timeout last; null is that of the role on the shard. It is
-- set before honcho's function runs, because an argument of it depends on that, and ends with the call. Outcomes are
-- text on the way. Arguments have no names, which PL/Proxy would find in the statements.

create function honcho_router.create_coupon(text, integer, timestamptz, timestamptz, text) returns boolean
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($1);
    select @extschema@.honcho_create_coupon($1 operator(pg_catalog.||) pg_catalog.left(s, 0), $2, $3, $4)
    from pg_catalog.set_config('lock_timeout', $5, true) s;
$$;

create function honcho_router.claim(text, text, text) returns text
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($2);
    select @extschema@.honcho_claim($1, $2 operator(pg_catalog.||) pg_catalog.left(s, 0))::pg_catalog.text
    from pg_catalog.set_config('lock_timeout', $3, true) s;
$$;

create function honcho_router.claim(text, text, text, text) returns text
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($2);
    select @extschema@.honcho_claim($1, $2 operator(pg_catalog.||) pg_catalog.left(s, 0), $3)::pg_catalog.text
    from pg_catalog.set_config('lock_timeout', $4, true) s;
$$;

create function honcho_router.claim_batch(text, text[], text) returns table (ordinal integer, outcome text)
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($1);
    select b.ordinal, b.outcome::pg_catalog.text as outcome
    from pg_catalog.set_config('lock_timeout', $3, true) s,
         @extschema@.honcho_claim_batch($1 operator(pg_catalog.||) pg_catalog.left(s, 0), $2) b;
$$;

create function honcho_router.claim_batch(text, text[], text[], text) returns table (ordinal integer, outcome text)
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($1);
    select b.ordinal, b.outcome::pg_catalog.text as outcome
    from pg_catalog.set_config('lock_timeout', $4, true) s,
         @extschema@.honcho_claim_batch($1 operator(pg_catalog.||) pg_catalog.left(s, 0), $2, $3) b;
$$;

-- The coupons' shard is that of the fourth argument.
create function honcho_router.claim_many(text[], text[], boolean, text, text)
returns table (ordinal integer, outcome text)
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($4);
    select m.ordinal, m.outcome::pg_catalog.text as outcome
    from pg_catalog.set_config('lock_timeout', $5, true) s,
         @extschema@.honcho_claim_many(
             $1, $2, $3 and (s operator(pg_catalog.=) s)
         ) m;
$$;

create function honcho_router.claim_or_raise(text, text, text) returns bigint
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($2);
    select @extschema@.honcho_claim_or_raise($1, $2 operator(pg_catalog.||) pg_catalog.left(s, 0))
    from pg_catalog.set_config('lock_timeout', $3, true) s;
$$;

create function honcho_router.release(text, text, text) returns text
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($2);
    select @extschema@.honcho_release($1, $2 operator(pg_catalog.||) pg_catalog.left(s, 0))::pg_catalog.text
    from pg_catalog.set_config('lock_timeout', $3, true) s;
$$;

create function honcho_router.reserve(text, text, interval, text, text)
returns table (outcome text, expires_at timestamptz)
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($2);
    select r.outcome::pg_catalog.text as outcome, r.expires_at
    from pg_catalog.set_config('lock_timeout', $5, true) s,
         @extschema@.honcho_reserve($1, $2 operator(pg_catalog.||) pg_catalog.left(s, 0), $3, $4) r;
$$;

create function honcho_router.confirm(text, text, text) returns text
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($2);
    select @extschema@.honcho_confirm($1, $2 operator(pg_catalog.||) pg_catalog.left(s, 0))::pg_catalog.text
    from pg_catalog.set_config('lock_timeout', $3, true) s;
$$;

create function honcho_router.cancel(text, text, text) returns text
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($2);
    select @extschema@.honcho_cancel($1, $2 operator(pg_catalog.||) pg_catalog.left(s, 0))::pg_catalog.text
    from pg_catalog.set_config('lock_timeout', $3, true) s;
$$;

create function honcho_router.apply(text, text[], text[], interval[], text[], text[], text)
returns table (ordinal integer, outcome text, expires_at timestamptz, replayed boolean)
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($1);
    select a.ordinal, a.outcome::pg_catalog.text as outcome, a.expires_at, a.replayed
    from pg_catalog.set_config('lock_timeout', $7, true) s,
         @extschema@.honcho_apply($1 operator(pg_catalog.||) pg_catalog.left(s, 0), $2, $3, $4, $5, $6) a;
$$;

create function honcho_router.expire(integer) returns setof integer
language plproxy as $$
    cluster 'honcho';
    run on all;
    select @extschema@.honcho_expire($1);
$$;

create function honcho_router.update_coupon(text, integer, timestamptz, timestamptz, boolean, text)
returns table (
    outcome text, name text, amount integer, remaining_amount integer, held_amount integer, starts_at timestamptz,
    ends_at timestamptz, paused boolean, state text
)
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($1);
    select u.outcome::pg_catalog.text as outcome, u.name, u.amount, u.remaining_amount, u.held_amount, u.starts_at,
           u.ends_at, u.paused, u.state
    from pg_catalog.set_config('lock_timeout', $6, true) s,
         @extschema@.honcho_update_coupon(
             $1 operator(pg_catalog.||) pg_catalog.left(s, 0), $2, $3, $4, $5
         ) u;
$$;

create function honcho_router.restock(text, integer, text)
returns table (
    outcome text, name text, amount integer, remaining_amount integer, held_amount integer, starts_at timestamptz,
    ends_at timestamptz, paused boolean, state text
)
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($1);
    select u.outcome::pg_catalog.text as outcome, u.name, u.amount, u.remaining_amount, u.held_amount, u.starts_at,
           u.ends_at, u.paused, u.state
    from pg_catalog.set_config('lock_timeout', $3, true) s,
         @extschema@.honcho_restock($1 operator(pg_catalog.||) pg_catalog.left(s, 0), $2) u;
$$;

create function honcho_router.delete_coupon(text, boolean, text) returns text
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($1);
    select @extschema@.honcho_delete_coupon($1 operator(pg_catalog.||) pg_catalog.left(s, 0), $2)::pg_catalog.text
    from pg_catalog.set_config('lock_timeout', $3, true) s;
$$;

create function honcho_router.purge_events(timestamptz, integer) returns setof integer
language plproxy as $$
    cluster 'honcho';
    run on all;
    select @extschema@.honcho_purge_events($1, $2);
$$;

-- With the id of the newest claim at that moment.
create function honcho_router.get_coupon(text)
returns table (
    id bigint, name text, amount integer, remaining_amount integer, created_at timestamptz, starts_at timestamptz,
    ends_at timestamptz, paused boolean, last_claim_id bigint
)
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($1);
    select c.id, c.name, c.amount, c.remaining_amount, c.created_at, c.starts_at, c.ends_at, c.paused, s.last_claim_id
    from @extschema@.honcho_get_coupon($1) c, @extschema@.honcho_get_stock($1) s;
$$;

create function honcho_router.list_coupons(bigint, integer) returns setof honcho_router.coupon
language plproxy as $$
    cluster 'honcho';
    run on all;
    select c.id, c.name, c.amount, c.remaining_amount, c.created_at, c.starts_at, c.ends_at, c.paused
    from @extschema@.honcho_list_coupons($1, $2) c;
$$;

create function honcho_router.get_claim(text, text) returns setof honcho_router.claim
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($2);
    select c.id, c.user_id, c.coupon_name, c.claimed_at from @extschema@.honcho_get_claim($1, $2) c;
$$;

create function honcho_router.list_claims(text, bigint, integer, bigint) returns setof honcho_router.claim
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($1);
    select c.id, c.user_id, c.coupon_name, c.claimed_at
    from @extschema@.honcho_list_claims($1, $2, $3) c
    where c.id operator(pg_catalog.<=) $4 or $4 is null;
$$;

create function honcho_router.get_stock(text) returns setof honcho_router.stock
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($1);
    select s.name, s.amount, s.remaining_amount, s.held_amount, s.starts_at, s.ends_at, s.paused, s.state,
           s.next_expiry, s.last_claim_id
    from @extschema@.honcho_get_stock($1) s;
$$;

create function honcho_router.get_hold(text, text) returns setof honcho_router.hold
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($2);
    select h.user_id, h.coupon_name, h.expires_at, h.created_at from @extschema@.honcho_get_hold($1, $2) h;
$$;

create function honcho_router.list_holds(text, text, integer) returns setof honcho_router.hold
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($1);
    select h.user_id, h.coupon_name, h.expires_at, h.created_at from @extschema@.honcho_list_holds($1, $2, $3) h;
$$;

create function honcho_router.list_user_claims(text, bigint, integer)
returns table (coupon_id bigint, coupon_name text, claimed_at timestamptz)
language plproxy as $$
    cluster 'honcho';
    run on all;
    select c.coupon_id, c.coupon_name, c.claimed_at from @extschema@.honcho_list_user_claims($1, $2, $3) c;
$$;

create function honcho_router.list_events(bigint, integer, text) returns setof honcho_router.event
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($3);
    select e.id, e.coupon_name, e.kind, e.at, e.actor, e.details from @extschema@.honcho_list_events($1, $2, $3) e;
$$;

create function honcho_router.verify(text)
returns table (coupon_name text, invariant text, holds boolean, detail text)
language plproxy as $$
    cluster 'honcho';
    run on honcho_router.place($1);
    select v.coupon_name, v.invariant, v.holds, v.detail from @extschema@.honcho_verify($1) v;
$$;

create function honcho_router.verify()
returns table (coupon_name text, invariant text, holds boolean, detail text)
language plproxy as $$
    cluster 'honcho';
    run on all;
    select v.coupon_name, v.invariant, v.holds, v.detail from @extschema@.honcho_verify() v;
$$;

-- Functions that change something -------------------------------------------------------------------------------------

-- Results are cast inside the guarded blocks: that reads the catalog, and a cancel there comes too late to undo the call.

create function @extschema@.honcho_create_coupon(
    name text, amount integer, starts_at timestamptz default null, ends_at timestamptz default null
) returns boolean
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_create_coupon()'), set_config('honcho_router.seen', '', true);
    begin
        return honcho_router.create_coupon(
            name, amount, starts_at, ends_at, nullif(current_setting('lock_timeout'), '0')
        );
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007');
        raise;
    end;
end $$;

create function @extschema@.honcho_claim(user_id text, coupon_name text) returns @extschema@.honcho_outcome
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_claim()'), set_config('honcho_router.seen', '', true);
    begin
        return honcho_router.claim(
            user_id, coupon_name, nullif(current_setting('lock_timeout'), '0')
        )::@extschema@.honcho_outcome;
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007');
        raise;
    end;
end $$;

create function @extschema@.honcho_claim(user_id text, coupon_name text, request_key text)
returns @extschema@.honcho_outcome
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_claim()'), set_config('honcho_router.seen', '', true);
    begin
        return honcho_router.claim(
            user_id, coupon_name, request_key, nullif(current_setting('lock_timeout'), '0')
        )::@extschema@.honcho_outcome;
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007');
        raise;
    end;
end $$;

create function @extschema@.honcho_claim_batch(coupon_name text, user_ids text[])
returns table (ordinal integer, outcome @extschema@.honcho_outcome)
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_claim_batch()'), set_config('honcho_router.seen', '', true);
    begin
        return query select b.ordinal, b.outcome::@extschema@.honcho_outcome
        from honcho_router.claim_batch(coupon_name, user_ids, nullif(current_setting('lock_timeout'), '0')) b;
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007');
        raise;
    end;
end $$;

create function @extschema@.honcho_claim_batch(coupon_name text, user_ids text[], request_keys text[])
returns table (ordinal integer, outcome @extschema@.honcho_outcome)
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_claim_batch()'), set_config('honcho_router.seen', '', true);
    begin
        return query select b.ordinal, b.outcome::@extschema@.honcho_outcome
        from honcho_router.claim_batch(
            coupon_name, user_ids, request_keys, nullif(current_setting('lock_timeout'), '0')
        ) b;
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007');
        raise;
    end;
end $$;

-- Without wait, each shard claims for itself: if one fails after another has claimed, its pairs are left out, which is
-- allowed then. So an error says that nothing was changed, unless it is 08007.
create function @extschema@.honcho_claim_many(user_ids text[], coupon_names text[], wait boolean default true)
returns table (ordinal integer, outcome @extschema@.honcho_outcome)
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
declare
    shards constant integer := honcho_router.shards();
    -- Of each coupon; null for a null.
    theirs constant integer[] := array(
        select case when n is not null then honcho_router.place(n) % shards end
        from unnest(coupon_names) with ordinality t (n, o) order by o
    );
    are_several boolean := (select count(distinct s) > 1 from unnest(theirs) s);
    part record;
    places integer[];
    outcomes text[];
begin
    perform honcho_router.guard('honcho_claim_many()'), set_config('honcho_router.seen', '', true);
    if are_several and wait then
        raise feature_not_supported using
            message = 'the coupons of honcho_claim_many() are on several shards',
            detail = 'One commit makes all of its claims, and a shard commits for itself.',
            hint = 'Make a call for each honcho_router.shard(coupon_name), or one with wait => false.';
    end if;
    -- The shard of the first coupon refuses others as they are.
    are_several := are_several and not wait
        and cardinality(user_ids) = cardinality(coupon_names) and cardinality(user_ids) <= 10000
        and not exists (
            select from unnest(user_ids, coupon_names) t (u, n)
            where (char_length(u) between 1 and 255 and char_length(n) between 1 and 255) is not true
        );
    begin
        for part in
            select user_ids as users, coupon_names as names, null::integer[] as places, 0 as shard
            where are_several is not true
            union all
            select array_agg(u order by o), array_agg(n order by o), array_agg(o::integer order by o), s
            from unnest(user_ids, coupon_names, theirs) with ordinality t (u, n, s, o)
            where are_several
            group by s
            order by shard
        loop
            begin
                select places || array_agg(coalesce(part.places[m.ordinal], m.ordinal)),
                       outcomes || array_agg(m.outcome)
                into places, outcomes
                from honcho_router.claim_many(
                    part.users,
                    part.names,
                    wait,
                    (select n from unnest(part.names) n where n is not null limit 1),
                    nullif(current_setting('lock_timeout'), '0')
                ) m;
            exception when query_canceled or assert_failure or others then
                begin
                    perform honcho_router.fail(sqlstate, sqlerrm, '08007');
                exception when cannot_connect_now then
                    null;
                end;
                if places is null then
                    raise;
                end if;
                places := places || part.places;
                outcomes := outcomes || array_fill(null::text, array[cardinality(part.places)]);
            end;
        end loop;
        -- Here, because a cancel comes too late to undo the claims.
        return query select p, o::@extschema@.honcho_outcome from unnest(places, outcomes) t (p, o) order by p;
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007');
        raise;
    end;
end $$;

create function @extschema@.honcho_claim_or_raise(user_id text, coupon_name text) returns bigint
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
declare
    outcome text;
begin
    perform honcho_router.guard('honcho_claim_or_raise()'), set_config('honcho_router.seen', '', true);
    begin
        return honcho_router.claim_or_raise(user_id, coupon_name, nullif(current_setting('lock_timeout'), '0'));
    exception
        when internal_error or query_canceled or admin_shutdown or crash_shutdown then
            perform honcho_router.fail(sqlstate, sqlerrm, '08007');
            raise;
        when unique_violation or no_data_found
            or sqlstate 'UC001' or sqlstate 'UC002' or sqlstate 'UC003' or sqlstate 'UC004' or sqlstate 'UC005' then
            -- PL/Proxy changes message and detail, and leaves out names.
            get stacked diagnostics outcome = pg_exception_detail;
            outcome := replace(outcome, 'Remote detail: ', '');
            if outcome = 'already_claimed' then
                raise unique_violation using
                    message = regexp_replace(sqlerrm, '^.*?\] REMOTE [^:]*: ', ''),
                    detail = outcome,
                    schema = '@extschema@',
                    table = 'claims',
                    constraint = 'claims_coupon_name_user_id_key';
            end if;
            raise exception using
                errcode = sqlstate,
                message = regexp_replace(sqlerrm, '^.*?\] REMOTE [^:]*: ', ''),
                detail = outcome;
    end;
end $$;

create function @extschema@.honcho_release(user_id text, coupon_name text) returns @extschema@.honcho_outcome
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_release()'), set_config('honcho_router.seen', '', true);
    begin
        return honcho_router.release(
            user_id, coupon_name, nullif(current_setting('lock_timeout'), '0')
        )::@extschema@.honcho_outcome;
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007');
        raise;
    end;
end $$;

create function @extschema@.honcho_reserve(
    user_id text, coupon_name text, ttl interval, request_key text default null
) returns table (outcome @extschema@.honcho_outcome, expires_at timestamptz)
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_reserve()'), set_config('honcho_router.seen', '', true);
    begin
        return query select r.outcome::@extschema@.honcho_outcome, r.expires_at
        from honcho_router.reserve(
            user_id, coupon_name, ttl, request_key, nullif(current_setting('lock_timeout'), '0')
        ) r;
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007');
        raise;
    end;
end $$;

create function @extschema@.honcho_confirm(user_id text, coupon_name text) returns @extschema@.honcho_outcome
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_confirm()'), set_config('honcho_router.seen', '', true);
    begin
        return honcho_router.confirm(
            user_id, coupon_name, nullif(current_setting('lock_timeout'), '0')
        )::@extschema@.honcho_outcome;
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007');
        raise;
    end;
end $$;

create function @extschema@.honcho_cancel(user_id text, coupon_name text) returns @extschema@.honcho_outcome
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_cancel()'), set_config('honcho_router.seen', '', true);
    begin
        return honcho_router.cancel(
            user_id, coupon_name, nullif(current_setting('lock_timeout'), '0')
        )::@extschema@.honcho_outcome;
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007');
        raise;
    end;
end $$;

create function @extschema@.honcho_apply(
    coupon_name text, operations text[], user_ids text[], ttls interval[] default null,
    request_keys text[] default null, actors text[] default null
) returns table (
    ordinal integer, outcome @extschema@.honcho_outcome, expires_at timestamptz, replayed boolean
)
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_apply()'), set_config('honcho_router.seen', '', true);
    begin
        return query select a.ordinal, a.outcome::@extschema@.honcho_outcome, a.expires_at, a.replayed
        from honcho_router.apply(
            coupon_name, operations, user_ids, ttls, request_keys, actors, nullif(current_setting('lock_timeout'), '0')
        ) a;
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007');
        raise;
    end;
end $$;

create function @extschema@.honcho_expire(max integer default 1000) returns integer
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_expire()'), set_config('honcho_router.seen', '', true);
    begin
        return (select least(sum(n), 2147483647) from honcho_router.expire(max) n);
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007', unsent => '08007');
        raise;
    end;
end $$;

create function @extschema@.honcho_update_coupon(
    name text, amount integer default null, starts_at timestamptz default null, ends_at timestamptz default null,
    paused boolean default null
) returns setof honcho_router.changed
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_update_coupon()'), set_config('honcho_router.seen', '', true);
    begin
        return query select u.outcome::@extschema@.honcho_outcome, u.name, u.amount, u.remaining_amount, u.held_amount,
            u.starts_at, u.ends_at, u.paused, u.state
        from honcho_router.update_coupon(
            name, amount, starts_at, ends_at, paused, nullif(current_setting('lock_timeout'), '0')
        ) u;
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007');
        raise;
    end;
end $$;

create function @extschema@.honcho_restock(name text, delta integer) returns setof honcho_router.changed
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_restock()'), set_config('honcho_router.seen', '', true);
    begin
        return query select u.outcome::@extschema@.honcho_outcome, u.name, u.amount, u.remaining_amount, u.held_amount,
            u.starts_at, u.ends_at, u.paused, u.state
        from honcho_router.restock(name, delta, nullif(current_setting('lock_timeout'), '0')) u;
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007');
        raise;
    end;
end $$;

create function @extschema@.honcho_delete_coupon(name text, with_claims boolean default false)
returns @extschema@.honcho_outcome
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_delete_coupon()'), set_config('honcho_router.seen', '', true);
    begin
        return honcho_router.delete_coupon(
            name, with_claims, nullif(current_setting('lock_timeout'), '0')
        )::@extschema@.honcho_outcome;
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007');
        raise;
    end;
end $$;

create function @extschema@.honcho_purge_events(before timestamptz, max integer default 10000) returns integer
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    perform honcho_router.guard('honcho_purge_events()'), set_config('honcho_router.seen', '', true);
    begin
        return (select least(sum(n), 2147483647) from honcho_router.purge_events(before, max) n);
    exception when query_canceled or others then
        perform honcho_router.fail(sqlstate, sqlerrm, '08007', unsent => '08007');
        raise;
    end;
end $$;

-- Functions that read -------------------------------------------------------------------------------------------------

create function @extschema@.honcho_get_coupon(name text) returns setof honcho_router.coupon
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
declare
    coupon record;
begin
    select c.* into coupon from honcho_router.get_coupon(name) c;
    if found then
        perform honcho_router.note_seen(name, coupon.last_claim_id);
        return query select coupon.id, coupon.name, coupon.amount, coupon.remaining_amount, coupon.created_at,
            coupon.starts_at, coupon.ends_at, coupon.paused;
    end if;
exception when internal_error or admin_shutdown or crash_shutdown then
    perform honcho_router.fail(sqlstate, sqlerrm, '08006');
    raise;
end $$;

create function @extschema@.honcho_list_coupons(after bigint default 0, max integer default 1000)
returns setof honcho_router.coupon
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    return query select c.* from honcho_router.list_coupons(after, max) c order by c.id limit greatest(max, 1);
exception when internal_error or admin_shutdown or crash_shutdown then
    perform honcho_router.fail(sqlstate, sqlerrm, '08006');
    raise;
end $$;

create function @extschema@.honcho_get_claim(user_id text, coupon_name text) returns setof honcho_router.claim
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    return query select c.* from honcho_router.get_claim(user_id, coupon_name) c;
exception when internal_error or admin_shutdown or crash_shutdown then
    perform honcho_router.fail(sqlstate, sqlerrm, '08006');
    raise;
end $$;

create function @extschema@.honcho_list_claims(coupon_name text, after bigint default 0, max integer default 1000)
returns setof honcho_router.claim
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    return query select c.*
    from honcho_router.list_claims(coupon_name, after, max, honcho_router.last_seen(coupon_name)) c;
exception when internal_error or admin_shutdown or crash_shutdown then
    perform honcho_router.fail(sqlstate, sqlerrm, '08006');
    raise;
end $$;

create function @extschema@.honcho_get_stock(name text) returns setof honcho_router.stock
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
declare
    stock honcho_router.stock;
begin
    select s.* into stock from honcho_router.get_stock(name) s;
    if found then
        perform honcho_router.note_seen(name, stock.last_claim_id);
        return next stock;
    end if;
exception when internal_error or admin_shutdown or crash_shutdown then
    perform honcho_router.fail(sqlstate, sqlerrm, '08006');
    raise;
end $$;

create function @extschema@.honcho_get_hold(user_id text, coupon_name text) returns setof honcho_router.hold
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    return query select h.* from honcho_router.get_hold(user_id, coupon_name) h;
exception when internal_error or admin_shutdown or crash_shutdown then
    perform honcho_router.fail(sqlstate, sqlerrm, '08006');
    raise;
end $$;

create function @extschema@.honcho_list_holds(coupon_name text, after text default '', max integer default 1000)
returns setof honcho_router.hold
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    return query select h.* from honcho_router.list_holds(coupon_name, after, max) h;
exception when internal_error or admin_shutdown or crash_shutdown then
    perform honcho_router.fail(sqlstate, sqlerrm, '08006');
    raise;
end $$;

create function @extschema@.honcho_list_user_claims(user_id text, after bigint default 0, max integer default 1000)
returns table (coupon_id bigint, coupon_name text, claimed_at timestamptz)
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    return query select c.* from honcho_router.list_user_claims(user_id, after, max) c
    order by c.coupon_id limit greatest(max, 1);
exception when internal_error or admin_shutdown or crash_shutdown then
    perform honcho_router.fail(sqlstate, sqlerrm, '08006');
    raise;
end $$;

create function @extschema@.honcho_list_events(
    after bigint default 0, max integer default 1000, coupon_name text default null
) returns setof honcho_router.event
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    if coupon_name is null then
        raise feature_not_supported using
            message = 'honcho_list_events() cannot list the events of all shards without missing one',
            detail = 'Their ids are in the order of their writing on each shard only.',
            hint = 'List those of one coupon, or connect to each shard.';
    end if;
    return query select e.* from honcho_router.list_events(after, max, coupon_name) e;
exception when internal_error or admin_shutdown or crash_shutdown then
    perform honcho_router.fail(sqlstate, sqlerrm, '08006');
    raise;
end $$;

create function @extschema@.honcho_verify(name text default null)
returns table (coupon_name text, invariant text, holds boolean, detail text)
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY' as $$
begin
    if name is not null then
        return query select v.* from honcho_router.verify(name) v;
    else
        return query select v.coupon_name, v.invariant, v.holds, v.detail
        from honcho_router.verify() with ordinality v (coupon_name, invariant, holds, detail, n)
        order by v.coupon_name collate "C", v.n;
    end if;
exception when internal_error or admin_shutdown or crash_shutdown then
    perform honcho_router.fail(sqlstate, sqlerrm, '08006');
    raise;
end $$;

-- Rights and comments -------------------------------------------------------------------------------------------------

-- Nothing to public. The functions for callers run as honcho_router, which may call the others. This asks the catalog,
-- so that no function is forgotten.
do $$
declare
    member record;
begin
    for member in
        select object.identity, f.prosecdef as is_for_callers, l.lanname operator(pg_catalog.=) 'plproxy' as is_remote
        from pg_catalog.pg_extension e
        join pg_catalog.pg_depend d
            on d.refclassid operator(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
            and d.refobjid operator(pg_catalog.=) e.oid
            and d.classid operator(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
            and d.deptype operator(pg_catalog.=) 'e'
        join pg_catalog.pg_proc f on f.oid operator(pg_catalog.=) d.objid
        join pg_catalog.pg_language l on l.oid operator(pg_catalog.=) f.prolang,
        lateral pg_catalog.pg_identify_object(d.classid, d.objid, d.objsubid) object
        where e.extname operator(pg_catalog.=) 'honcho_router'
    loop
        execute pg_catalog.format('revoke all on function %s from public', member.identity);
        if member.is_for_callers then
            execute pg_catalog.format('alter function %s owner to honcho_router', member.identity);
        else
            execute pg_catalog.format('grant execute on function %s to honcho_router', member.identity);
        end if;
        if member.is_remote then
            execute pg_catalog.format('comment on function %s is %L', member.identity,
                                      'Calls the function of honcho with this name on the shard, or on all of them');
        end if;
    end loop;
end $$;
grant usage on schema honcho_router, @extschema@ to honcho_router;

comment on function honcho_router.place(text) is
    'The place of a coupon, from 0 to 255: the first byte of the SHA-256 of its name in UTF-8';
comment on function honcho_router.shard(text) is
    'The number of a coupon''s shard: the N of the option pN of the server honcho';
comment on function honcho_router.shards() is
    'The number of shards: of the options pN of the server honcho';
comment on function honcho_router.guard(text) is
    'Raises 25001 in a transaction block, unless honcho_router.allow_autonomous is on';
comment on function honcho_router.fail(text, text, text, text) is
    'Raises an error of PL/Proxy with the SQLSTATE that says what may have happened';
comment on function honcho_router.note_seen(text, bigint) is
    'Keeps a coupon''s newest claim for the lists of this statement';
comment on function honcho_router.last_seen(text) is
    'The newest claim of a coupon that this statement has read, or null';
comment on type honcho_router.coupon is
    'Row of honcho_get_coupon and honcho_list_coupons';
comment on type honcho_router.stock is
    'Row of honcho_get_stock';
comment on type honcho_router.changed is
    'Row of honcho_update_coupon and honcho_restock';
comment on type honcho_router.claim is
    'Row of honcho_get_claim and honcho_list_claims';
comment on type honcho_router.hold is
    'Row of honcho_get_hold and honcho_list_holds';
comment on type honcho_router.event is
    'Row of honcho_list_events';
comment on function @extschema@.honcho_create_coupon(text, integer, timestamptz, timestamptz) is
    'Creates a coupon on its shard; false if its name is taken';
comment on function @extschema@.honcho_claim(text, text) is
    'Claims a coupon for a user on its shard, which commits before this returns';
comment on function @extschema@.honcho_claim(text, text, text) is
    'Claims a coupon for a user; claimed again for the same request key, whose claim it is';
comment on function @extschema@.honcho_claim_batch(text, text[]) is
    'Claims a coupon for up to 10,000 users at once; one outcome per user, in order';
comment on function @extschema@.honcho_claim_batch(text, text[], text[]) is
    'Claims a coupon for up to 10,000 users at once, each with the key of its request';
comment on function @extschema@.honcho_claim_many(text[], text[], boolean) is
    'Claims up to 10,000 pairs of users and coupons, of several shards only without wait; one outcome per pair, in order';
comment on function @extschema@.honcho_claim_or_raise(text, text) is
    'Claims a coupon and returns the claim''s id; a refusal is an error';
comment on function @extschema@.honcho_release(text, text) is
    'Gives a user''s claim back: its piece is stock again, and the user may claim again';
comment on function @extschema@.honcho_reserve(text, text, interval, text) is
    'Holds a piece of a coupon for a user, for 1 second to 24 hours';
comment on function @extschema@.honcho_confirm(text, text) is
    'Turns a user''s hold into a claim, before it expires';
comment on function @extschema@.honcho_cancel(text, text) is
    'Gives a user''s hold back: its piece is stock again';
comment on function @extschema@.honcho_apply(text, text[], text[], interval[], text[], text[]) is
    'Carries out up to 10,000 operations of all kinds on one coupon, in order';
comment on function @extschema@.honcho_expire(integer) is
    'Takes up to max expired holds back on each shard: it tidies';
comment on function @extschema@.honcho_update_coupon(text, integer, timestamptz, timestamptz, boolean) is
    'Changes a coupon''s amount, window and pause; null leaves each as it is';
comment on function @extschema@.honcho_restock(text, integer) is
    'Changes a coupon''s amount and stock by a difference';
comment on function @extschema@.honcho_delete_coupon(text, boolean) is
    'Deletes a coupon, with its claims and holds only if asked to';
comment on function @extschema@.honcho_purge_events(timestamptz, integer) is
    'Deletes up to max events before a moment on each shard, the oldest first';
comment on function @extschema@.honcho_get_coupon(text) is
    'The coupon of that name, or no row';
comment on function @extschema@.honcho_list_coupons(bigint, integer) is
    'A page of the coupons of all shards by id: up to max of those with an id above after';
comment on function @extschema@.honcho_get_claim(text, text) is
    'The user''s claim on the coupon, or no row';
comment on function @extschema@.honcho_list_claims(text, bigint, integer) is
    'A page of a coupon''s claims in claim order: up to max of those with an id above after';
comment on function @extschema@.honcho_get_stock(text) is
    'Stock and state of the coupon of that name, or no row';
comment on function @extschema@.honcho_get_hold(text, text) is
    'The user''s hold on the coupon, or no row';
comment on function @extschema@.honcho_list_holds(text, text, integer) is
    'A page of a coupon''s holds by user: up to max of those with a user above after';
comment on function @extschema@.honcho_list_user_claims(text, bigint, integer) is
    'A page of a user''s claims on all shards by coupon: up to max of those on coupons with an id above after';
comment on function @extschema@.honcho_list_events(bigint, integer, text) is
    'A page of the durable events of one coupon: up to max of those with an id above after';
comment on function @extschema@.honcho_verify(text) is
    'Checks the books of one coupon, or of all shards: one row per coupon and invariant';
