-- GETs of one coupon for wrk, with the tally in the form that claim_wrk.lua prints.
function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        "tally requests=%d duration=%d refused=%d broken=%d wanted=0 unwanted=0 p50=%d p99=%d\n",
        summary.requests, summary.duration, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout,
        latency:percentile(50), latency:percentile(99)))
end
