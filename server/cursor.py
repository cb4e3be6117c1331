"""Signed cursors: where a page begins, and the address of the next page."""

import base64
import hmac
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import orjson
from flask import current_app, request

from server import errors

SIGNATURE_LENGTH = 12  # bytes


def make_cursor(key: list[Any], scope: str) -> str:
    """Return a signed cursor with `key`: the values of the page's last row in the columns of the order.

    The cursor is valid for `scope` alone: the collection, its order and its filters. SECRET_KEY signs it.
    """
    # Times become UTC: orjson rounds offsets with seconds, which zones had until 1972.
    values = orjson.dumps([value.astimezone(UTC) if isinstance(value, datetime) else value for value in key])
    return base64.urlsafe_b64encode(_signature(values, scope) + values).rstrip(b"=").decode()


def read_cursor(cursor: str, scope: str) -> list[Any]:
    """Return the key that a cursor holds, with its times as ISO 8601 texts.

    Raises `Invalid` for a cursor that this server did not make for this scope.
    """
    try:
        signed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        signature, values = signed[:SIGNATURE_LENGTH], signed[SIGNATURE_LENGTH:]
        if not hmac.compare_digest(signature, _signature(values, scope)):
            raise ValueError
    except ValueError:
        raise errors.Invalid(
            cursor="This cursor is not valid for this collection, order and filters. Follow the Link header."
        ) from None
    key: list[Any] = orjson.loads(values)
    return key


def _signature(values: bytes, scope: str) -> bytes:
    secret: str = current_app.config["SECRET_KEY"]
    return hmac.digest(secret.encode(), f"cursor|{scope}|".encode() + values, "sha256")[:SIGNATURE_LENGTH]


def next_link(cursor: str, **fixed: str) -> str:
    """Return the Link header (RFC 8288) to the page that begins at the cursor: this request's address with the cursor.

    `fixed` replaces parameters that mean something else at another time: `on=today`.
    The address begins with PUBLIC_URL. Without PUBLIC_URL it is relative, because clients choose the Host header.
    """
    parameters = [(name, value) for name, value in request.args.items(multi=True) if name not in ("cursor", *fixed)]
    parameters += fixed.items()
    address = f"{current_app.config['PUBLIC_URL']}{request.path}?{urlencode([*parameters, ('cursor', cursor)])}"
    return f'<{address}>; rel="next"'
