-- A row for each unit of a coupon. A claim takes one that no other transaction has locked, so claims on one coupon
-- do not wait for each other.
create table coupons (
    id serial primary key,
    name varchar(255) not null unique,
    amount integer not null,
    created_at timestamptz not null default now()
);

-- The units that can still be claimed.
create table units (
    coupon_id integer not null references coupons (id),
    number integer not null,
    primary key (coupon_id, number)
);

-- Without a foreign key to coupons, whose lock would bring all claims together on the coupon's row.
create table claims (
    user_id varchar(255) not null,
    coupon_id integer not null,
    unit integer not null,
    claimed_at timestamptz not null default now(),
    primary key (coupon_id, unit),
    unique (user_id, coupon_id)
);

create function claim_unit(claimant text, coupon text) returns text
language plpgsql as $$
declare
    wanted integer;
    taken integer;
begin
    select c.id into wanted from coupons c where c.name = coupon;
    if not found then
        return 'not_found';
    end if;
    perform from claims c where c.user_id = claimant and c.coupon_id = wanted;
    if found then
        return 'already_claimed';
    end if;
    delete from units
     where ctid = (
               select u.ctid from units u where u.coupon_id = wanted
                order by u.number limit 1 for update skip locked)
    returning number into taken;
    if not found then
        return 'sold_out';
    end if;
    insert into claims (user_id, coupon_id, unit) values (claimant, wanted, taken)
        on conflict (user_id, coupon_id) do nothing;
    if not found then
        -- The user has claimed twice at the same moment.
        insert into units (coupon_id, number) values (wanted, taken);
        return 'already_claimed';
    end if;
    return 'claimed';
end
$$;
