-- The tables of the prior system, and its transaction as one PL/pgSQL function.
create table coupons (
    id serial primary key,
    name varchar(255) not null unique,
    amount integer not null,
    remaining_amount integer not null,
    created_at timestamptz not null default now()
);

create table claims (
    id serial primary key,
    user_id varchar(255) not null,
    coupon_name varchar(255) not null references coupons (name),
    claimed_at timestamptz not null default now(),
    unique (user_id, coupon_name)
);

create function prior_claim(claimant text, coupon text) returns text
language plpgsql as $$
declare
    remaining integer;
begin
    select c.remaining_amount into remaining from coupons c where c.name = coupon for update;
    if not found then
        return 'not_found';
    end if;
    if remaining <= 0 then
        return 'sold_out';
    end if;
    insert into claims (user_id, coupon_name) values (claimant, coupon) on conflict do nothing;
    if not found then
        return 'already_claimed';
    end if;
    update coupons c set remaining_amount = c.remaining_amount - 1 where c.name = coupon;
    return 'claimed';
end
$$;

-- What a commit costs in this cluster is measured on this one.
create table flush_probe (at timestamptz not null default now());
