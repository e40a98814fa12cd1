-- KEYS: the coupon's stock, the users who have one, the claims in order. ARGV: the user.
local stock = redis.call('GET', KEYS[1])
if not stock then
    return 'not_found'
end
if tonumber(stock) <= 0 then
    if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then
        return 'already_claimed'
    end
    return 'sold_out'
end
if redis.call('SADD', KEYS[2], ARGV[1]) == 0 then
    return 'already_claimed'
end
redis.call('DECR', KEYS[1])
redis.call('RPUSH', KEYS[3], ARGV[1])
return 'claimed'
