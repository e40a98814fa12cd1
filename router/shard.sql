-- Lets the ids of a logical shard ascend in steps of 256 from its number on, so that no other shard gives the same ids:
-- shard N counts N+1, N+257, and so on. Run it in the database of each shard after `create extension honcho`, and again
-- after a restore, because a dump has the ids and not the steps. Repeating it changes nothing but the next ids, which
-- may leave some out. It refuses a database that has other ids already.
--
--     psql -d honcho_03 -v shard=3 -f shard.sql
--     psql -d honcho_03 -v shard=3 -v schema=honcho -f shard.sql     if the extension is not in public
\set ON_ERROR_STOP on
\if :{?schema}
\else
    \set schema public
\endif

\if :{?shard}
\else
    do 'begin raise exception $$set the number of the shard: psql -v shard=3 -f shard.sql$$; end';
\endif

begin;
set local search_path = pg_catalog, pg_temp;
select set_config('honcho_router.shard', :'shard', true),
       set_config('honcho_router.schema', :'schema', true) \gset ignored_
do $$
declare
    shard    constant bigint := current_setting('honcho_router.shard')::bigint;
    sequence record;
    latest   bigint;
    highest  bigint;
    fits     boolean;
begin
    if shard not between 0 and 255 then
        raise invalid_parameter_value using message = 'the number of a shard is between 0 and 255';
    end if;
    if to_regclass(format('%I.coupons_id_seq', current_setting('honcho_router.schema'))) is null then
        raise undefined_table using
            message = format('the extension honcho is not in the schema %s', current_setting('honcho_router.schema')),
            hint = 'First create extension honcho; -v schema names another schema.';
    end if;
    if to_regclass(format('%I.coupon_events_id_seq', current_setting('honcho_router.schema'))) is null then
        raise undefined_table using
            message = format('the extension honcho is too old, version %s', (select extversion from pg_extension
                                                                              where extname = 'honcho')),
            hint = 'First alter extension honcho update.';
    end if;
    for sequence in
        select format('%I.%I', current_setting('honcho_router.schema'), wanted || '_id_seq') as name,
               format('%I.%I', current_setting('honcho_router.schema'), wanted) as numbered,
               s.seqincrement as step
        from unnest(array['coupons', 'claims', 'coupon_events']) wanted
        left join pg_sequence s
            on s.seqrelid = to_regclass(format('%I.%I', current_setting('honcho_router.schema'), wanted || '_id_seq'))
    loop
        -- From here on no session draws an id until the commit.
        execute format('alter sequence %s increment by 256 start with %s', sequence.name, shard + 1);
        execute format('select case when is_called then last_value else last_value - %s end from %s',
                       sequence.step, sequence.name) into latest;
        execute format('select max(id), bool_and((id - 1) %% 256 = %s) from %s', shard, sequence.numbered)
            into highest, fits;
        if not fits then
            raise object_not_in_prerequisite_state using
                message = format('%s has ids that are not those of shard %s', sequence.numbered, shard),
                hint = 'A database becomes a shard before there are coupons, and keeps its number.';
        end if;
        execute format('alter sequence %s restart with %s', sequence.name,
                       shard + 1 + 256 * greatest((greatest(latest, highest) - shard + 255) / 256, 0));
    end loop;
end $$;
commit;
