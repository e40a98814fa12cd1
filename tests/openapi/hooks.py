"""What schemathesis generates, brought in line with what JSON Schema cannot say."""

import schemathesis


@schemathesis.hook
def map_body(context, body):
    # To JSON Schema 5.0 is an integer; to this API, as to most, it is none.
    if isinstance(body, dict):
        amount = body.get("amount")
        if isinstance(amount, float) and amount.is_integer():
            body["amount"] = int(amount)
    return body
