-- A bad argument is an error that names it and says what is wrong; nothing is written.
create extension honcho;
\pset format unaligned
\pset footer off
\pset tuples_only on
select honcho_create_coupon('PROMO', 5);

create function pg_temp.attempt(call text) returns text language plpgsql as $$
begin
    execute 'select * from ' || call;
    return 'no error';
exception when others then
    return sqlstate || ' ' || sqlerrm;
end $$;

select replace(call, repeat('x', 256), 'x…') || '  →  ' || pg_temp.attempt(call) from (values
    ($$honcho_claim(null, 'PROMO')$$),
    ($$honcho_claim('ann', null)$$),
    ($$honcho_claim(null, null)$$),
    ($$honcho_claim('', 'PROMO')$$),
    ($$honcho_claim('ann', '')$$),
    ($$honcho_claim(repeat('x', 256), 'PROMO')$$),
    ($$honcho_claim('ann', repeat('x', 256))$$),
    ($$honcho_claim(repeat('é', 256), 'PROMO')$$),
    ($$honcho_claim(repeat('x', 1000000), 'PROMO')$$),
    ($$honcho_claim_or_raise(null, 'PROMO')$$),
    ($$honcho_claim_or_raise('ann', '')$$),
    ($$honcho_claim_batch(null, array['ann'])$$),
    ($$honcho_claim_batch('', array['ann'])$$),
    ($$honcho_claim_batch('PROMO', null)$$),
    ($$honcho_claim_batch('PROMO', array['ann', null, 'bob'])$$),
    ($$honcho_claim_batch('PROMO', array['ann', 'bob', ''])$$),
    ($$honcho_claim_batch('PROMO', array['ann', repeat('x', 256)])$$),
    ($$honcho_claim_batch('PROMO', array_fill('ann'::text, array[10001]))$$),
    ($$honcho_create_coupon(null, 1)$$),
    ($$honcho_create_coupon('', 1)$$),
    ($$honcho_create_coupon(repeat('x', 256), 1)$$),
    ($$honcho_create_coupon('NEW', null)$$),
    ($$honcho_create_coupon('NEW', 0)$$),
    ($$honcho_create_coupon('NEW', -1)$$),
    ($$honcho_create_coupon('NEW', (-2147483648))$$),
    ($$honcho_create_coupon('NEW', 1, '2030-01-02', '2030-01-01')$$),
    ($$honcho_create_coupon('NEW', 1, '2030-01-01', '2030-01-01')$$),
    ($$honcho_get_coupon(null)$$),
    ($$honcho_get_coupon('')$$),
    ($$honcho_get_coupon(repeat('x', 256))$$),
    ($$honcho_list_coupons(null)$$),
    ($$honcho_list_coupons(0, null)$$),
    ($$honcho_list_coupons(0, 0)$$),
    ($$honcho_list_coupons(0, 10001)$$),
    ($$honcho_get_claim(null, 'PROMO')$$),
    ($$honcho_get_claim('ann', '')$$),
    ($$honcho_list_claims(null)$$),
    ($$honcho_list_claims('PROMO', null)$$),
    ($$honcho_list_claims('PROMO', 0, null)$$),
    ($$honcho_list_claims('PROMO', 0, 0)$$),
    ($$honcho_list_claims('PROMO', 0, 10001)$$),
    ($$honcho_verify('')$$),
    ($$honcho_verify(repeat('x', 256))$$)
) as bad (call);

select name, amount, remaining_amount from coupons;
select count(*) from claims;
select honcho_create_coupon('MOST', 2147483647);
drop extension honcho;
