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
    amount = body.get("amount")
    if isinstance(amount, float) and amount.is_integer():
        body["amount"] = int(amount)
    # A window ends after it starts.
    starts_at, ends_at = parse(body.get("starts_at")), parse(body.get("ends_at"))
    if starts_at and ends_at and ends_at <= starts_at:
        if ends_at == starts_at:
            del body["ends_at"]
        else:
            body["starts_at"], body["ends_at"] = body["ends_at"], body["starts_at"]
    return body
