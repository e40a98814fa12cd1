-- Claims over HTTP for wrk. Arguments after `--`: the name of the coupon, a tag that makes the
-- users of this run its own, how many users there are (0: a new one for every request), how many
-- coupons (0: just the one; else "<name>_<4 digits>" at random), and the status to look for
-- (0: count no statuses, which costs the least).
function init(args)
    local coupon, tag, users, coupons = args[1], args[2], tonumber(args[3]), tonumber(args[4])
    local status_wanted = tonumber(args[5])
    math.randomseed(number * 7919)

    -- Users and coupons have names of one length, so the length of the body is known beforehand.
    local user_prefix = "user_" .. tag .. "_"
    if users == 0 then
        user_prefix = user_prefix .. number .. "_"
    end
    local name = coupons == 0 and coupon or coupon .. "_1000"
    local length = #('{"user_id":"","coupon_name":""}') + #user_prefix + 9 + #name
    local head = "POST /api/coupons/claim HTTP/1.1\r\nHost: localhost\r\n"
        .. "Content-Type: application/json\r\nContent-Length: " .. length .. "\r\n\r\n"
        .. '{"user_id":"' .. user_prefix
    local middle = '","coupon_name":"' .. coupon
    local tail = '"}'

    local serial = 100000000
    function request()
        local user
        if users == 0 then
            serial = serial + 1
            user = serial
        else
            user = 100000000 + math.random(users)
        end
        if coupons == 0 then
            return head .. user .. middle .. tail
        end
        return head .. user .. middle .. "_" .. (999 + math.random(coupons)) .. tail
    end

    wanted, unwanted = 0, 0
    if status_wanted ~= 0 then
        function response(status)
            if status == status_wanted then
                wanted = wanted + 1
            else
                unwanted = unwanted + 1
            end
        end
    end
end
