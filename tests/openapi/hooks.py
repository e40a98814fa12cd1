"""Adjusts generated bodies where JSON Schema cannot express what the API requires."""

from datetime import datetime

import schemathesis


def parse(value):
    """Return a moment that has an offset, or None for anything else."""
    try:
        moment = datetime.fromisoformat(value.upper().replace("Z", "+00:00"))
    except (AttributeError, ValueError):
        return None
    return moment if moment.tzinfo else None


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict):
        return body
    # To JSON Schema 5.0 is an integer; to this API, as to most, it is none.
    for field in ("amount", "delta", "ttl"):
        number = body.get(field)
        if isinstance(number, float) and number.is_integer():
            body[field] = int(number)
    # A window ends after it starts.
    starts_at, ends_at = parse(body.get("starts_at")), parse(body.get("ends_at"))
    if starts_at and ends_at and ends_at <= starts_at:
        if ends_at == starts_at:
            del body["ends_at"]
        else:
            body["starts_at"], body["ends_at"] = body["ends_at"], body["starts_at"]
    return body


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if not isinstance(body, dict):
        return
    # An amount and all restocks together stay below the largest amount.
    amount = body.get("amount")
    if isinstance(amount, int) and 2**30 < amount < 2**31:
        body["amount"] = 2**30
    delta = body.get("delta")
    if isinstance(delta, int) and abs(delta) < 2**31:
        body["delta"] = delta % 1000
    # A hold outlives the requests that follow.
    ttl = body.get("ttl")
    if isinstance(ttl, int) and not isinstance(ttl, bool) and 1 <= ttl <= 86400:
        body["ttl"] = max(ttl, 3600)
    # A patch of one bound could contradict the other, which the coupon has.
    bounds = {"starts_at", "ends_at"} & body.keys()
    if case.method == "PATCH" and len(bounds) == 1:
        body.update(dict.fromkeys({"starts_at", "ends_at"} - bounds))
