-- The first part of every script for wrk: a number for each of its threads, and the tally at the end.
local threads = {}

function setup(thread)
    thread:set("number", #threads + 1)
    table.insert(threads, thread)
end

-- The sum of a global variable of all threads, for scripts that have it.
local function total(name)
    local sum = 0
    for _, thread in ipairs(threads) do
        sum = sum + (thread:get(name) or 0)
    end
    return sum
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        "tally requests=%d duration=%d refused=%d broken=%d wanted=%d unwanted=%d claims=%d holds=%d p50=%d p99=%d\n",
        summary.requests, summary.duration, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout,
        total("wanted"), total("unwanted"), total("claims"), total("holds"),
        latency:percentile(50), latency:percentile(99)))
end

