-- Operations on one coupon over HTTP for wrk. Arguments after `--`: which ones (reserve, confirm, or mixed),
-- and the name of the coupon.
function init(args)
    local which, coupon = args[1], args[2]
    local path = "/api/coupons/" .. coupon
    -- Users are called this and nine digits, so the length of a body is known beforehand.
    local user = "user_" .. number .. "_"

    -- Functions that make a request from the user's digits.
    local function with_body(where, before, after)
        local head = "POST " .. where .. " HTTP/1.1\r\nHost: localhost\r\n"
            .. "Content-Type: application/json\r\nContent-Length: " .. #before + #user + 9 + #after
            .. "\r\n\r\n" .. before .. user
        return function(digits)
            return head .. digits .. after
        end
    end
    local function without_body(method, before, after)
        local head = method .. " " .. path .. before .. user
        local tail = after .. " HTTP/1.1\r\nHost: localhost\r\n\r\n"
        return function(digits)
            return head .. digits .. tail
        end
    end
    local claim = with_body("/api/coupons/claim", '{"user_id":"', '","coupon_name":"' .. coupon .. '"}')
    local reserve = with_body(path .. "/holds", '{"user_id":"', '","ttl":3600}')
    local confirm = without_body("POST", "/holds/", "/confirm")
    local cancel = without_body("DELETE", "/holds/", "")
    local release = without_body("DELETE", "/claims/", "")

    local serial = 100000000
    if which ~= "mixed" then
        local make = which == "reserve" and reserve or confirm
        function request()
            serial = serial + 1
            return make(serial)
        end
        return
    end

    -- Fifty requests have five of the others: reservations of two users, and for two who reserved AGO fifties
    -- before a confirmation and a cancellation, and the release of a claim that was confirmed as long ago. By
    -- then, the earlier request has been answered on its own connection. Before there are such users, claims
    -- take the places. They all sort before the users who claim, so that these claims grow the end of an index as
    -- they do in the case of claims alone.
    local AGO = 20
    serial = 500000000
    local fifty, place = 0, 0
    claims, holds = 0, 0
    local function holder(which_fifty, which_user)
        return 100000000 + 2 * which_fifty + which_user
    end
    function request()
        place = place + 1
        if place == 10 or place == 20 then
            holds = holds + 1
            return reserve(holder(fifty, place / 10 - 1))
        elseif place == 30 and fifty >= AGO then
            claims, holds = claims + 1, holds - 1
            return confirm(holder(fifty - AGO, 0))
        elseif place == 40 and fifty >= AGO then
            holds = holds - 1
            return cancel(holder(fifty - AGO, 1))
        elseif place == 50 then
            place, fifty = 0, fifty + 1
            if fifty > 2 * AGO then
                claims = claims - 1
                return release(holder(fifty - 1 - 2 * AGO, 0))
            end
        end
        claims, serial = claims + 1, serial + 1
        return claim(serial)
    end
end
