-- What create extension makes, and who may use it.
create extension honcho;

select p.oid::regprocedure as function, provolatile as volatility, proparallel as parallel,
       proisstrict as strict, prosecdef as definer, proconfig as settings
from pg_proc p
join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
join pg_extension e on e.oid = d.refobjid and e.extname = 'honcho'
order by proname;

select conrelid::regclass as "table", conname, pg_get_constraintdef(oid)
from pg_constraint
where conrelid in ('coupons'::regclass, 'claims'::regclass)
  -- PostgreSQL 18 and newer count not null in.
  and contype <> 'n'
order by 1, 2;

select pg_get_triggerdef(oid), obj_description(oid, 'pg_trigger')
from pg_trigger
where tgrelid in ('coupons'::regclass, 'claims'::regclass)
order by tgname;

select enum_range(null::honcho_outcome);

-- Every table, column, function and type says what it is.
select d.classid::regclass, pg_describe_object(d.classid, d.objid, 0) as undocumented
from pg_depend d
join pg_extension e on e.oid = d.refobjid and e.extname = 'honcho'
left join pg_class c on d.classid = 'pg_class'::regclass and c.oid = d.objid
left join pg_type t on d.classid = 'pg_type'::regclass and t.oid = d.objid
where d.deptype = 'e' and c.relkind is distinct from 'S'
  -- PostgreSQL 16 and newer count the tables' row types and all array types in.
  and coalesce(t.typtype, 'e') = 'e'
  and obj_description(d.objid, d.classid::regclass::name) is null;
select attrelid::regclass, attname as undocumented
from pg_attribute
where attrelid in ('coupons'::regclass, 'claims'::regclass, 'holds'::regclass, 'coupon_events'::regclass) and attnum > 0
  and col_description(attrelid, attnum) is null;

-- Nothing is granted to public but the right to name the type of what a function returns.
select pg_describe_object(d.classid, d.objid, 0) as object, acl.privilege_type
from pg_depend d
join pg_extension e on e.oid = d.refobjid and e.extname = 'honcho'
left join pg_class c on d.classid = 'pg_class'::regclass and c.oid = d.objid
left join pg_proc p on d.classid = 'pg_proc'::regclass and p.oid = d.objid
left join pg_type t on d.classid = 'pg_type'::regclass and t.oid = d.objid,
lateral aclexplode(coalesce(
    c.relacl, p.proacl, t.typacl,
    acldefault((case d.classid when 'pg_class'::regclass then case c.relkind when 'S' then 's' else 'r' end
                when 'pg_proc'::regclass then 'f' else 'T' end)::"char", 10))) as acl
where d.deptype = 'e' and acl.grantee = 0 and coalesce(t.typtype, 'e') = 'e'
order by 1;

drop extension honcho;
