-- A role that may execute the functions can claim, and can touch no table; another role can do nothing.
create extension honcho;
\pset footer off
select honcho_create_coupon('PROMO', 5);
create role regress_honcho_claimer;
create role regress_honcho_stranger;
grant execute on function honcho_claim(text, text), honcho_claim_batch(text, text[]), honcho_get_coupon to regress_honcho_claimer;

set role regress_honcho_claimer;
select honcho_claim('ann', 'PROMO');
select * from honcho_claim_batch('PROMO', array['ann', 'bob']);
select remaining_amount from honcho_get_coupon('PROMO');
select count(*) from coupons;
select count(*) from claims;
insert into claims (user_id, coupon_name) values ('eve', 'PROMO');
update coupons set remaining_amount = 100;
delete from claims;
truncate claims;
select nextval('claims_id_seq');
select honcho_create_coupon('MINE', 1);
select * from honcho_verify();

set role regress_honcho_stranger;
select honcho_claim('ann', 'PROMO');
select * from honcho_get_coupon('PROMO');
select * from coupons;
reset role;

-- The rest is asked of the catalog, so that it holds for every member of the extension.
create temporary view member as
select object.type, object.identity, d.objid
from pg_depend d
join pg_extension e on e.oid = d.refobjid and e.extname = 'honcho',
pg_identify_object(d.classid, d.objid, 0) object
where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
  and object.type in ('function', 'table', 'sequence');
select type, count(*) > 0 as "there are some" from member group by type order by type;

-- A stranger, so public, has no right.
select identity as open_to_public
from member
where case type
    when 'function' then has_function_privilege('regress_honcho_stranger', objid, 'execute')
    when 'sequence' then has_sequence_privilege('regress_honcho_stranger', objid, 'usage, select, update')
    else has_table_privilege('regress_honcho_stranger', objid, 'truncate, delete, trigger')
        or has_any_column_privilege('regress_honcho_stranger', objid, 'select, insert, update, references')
    end
order by identity;

-- A function runs with its owner's rights and resolves names in pg_catalog alone. A trigger's function cannot be
-- called.
select identity as unprotected
from member join pg_proc p on type = 'function' and p.oid = objid
where prorettype <> 'trigger'::regtype
  and (not prosecdef or proconfig is distinct from array['search_path=pg_catalog, pg_temp'])
order by identity;

-- A function, a table and a column have comments.
select identity as undocumented
from member
where type = 'function' and obj_description(objid, 'pg_proc') is null
   or type = 'table' and obj_description(objid, 'pg_class') is null
union all
select format('%s.%s', identity, attname)
from member join pg_attribute on type = 'table' and attrelid = objid
where attnum > 0 and not attisdropped and col_description(attrelid, attnum) is null
order by undocumented;

select * from honcho_verify();
drop view member;
drop extension honcho;
drop role regress_honcho_claimer, regress_honcho_stranger;
