-- The claim in plain SQL on Honcho's tables, with an advisory lock as the coupon's turn. It knows no windows, pauses
-- and holds.
create function claim_in_queue(claimant text, coupon text) returns text
language plpgsql as $$
declare
    wanted bigint;
    remaining integer;
begin
    select c.id into wanted from coupons c where c.name = coupon;
    if not found then
        return 'not_found';
    end if;
    perform pg_advisory_xact_lock(wanted);
    -- Every statement takes its own snapshot, so this one sees what was committed in the turns before.
    select c.remaining_amount into remaining from coupons c where c.id = wanted;
    if not found then
        return 'not_found';
    end if;
    if remaining <= 0 then
        return 'sold_out';
    end if;
    insert into claims (user_id, coupon_name, claimed_at) values (claimant, coupon, clock_timestamp())
        on conflict do nothing;
    if not found then
        return 'already_claimed';
    end if;
    update coupons c set remaining_amount = c.remaining_amount - 1 where c.id = wanted;
    return 'claimed';
end
$$;
