"""Limits how many requests one address may send to a view."""

import ipaddress
import math
import re
import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

from flask import Flask, Response, current_app, request
from flask_limiter import Limiter, RateLimitExceeded
from flask_limiter.util import get_qualified_name

from server import errors

View = TypeVar("View", bound=Callable[..., Any])


def client_address() -> str:
    """Return the address that sent the request. An IPv6 address becomes its /64, which belongs to one subscriber."""
    text = re.sub(r"^\[(.+)\](:\d+)?$|^([\d.]+):\d+$", r"\1\3", request.remote_addr or "")  # some proxies add the port
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


# Without Redis the limiter counts in memory: an outage must not lock anybody out.
limiter = Limiter(
    client_address,
    in_memory_fallback_enabled=True,
    storage_options={"socket_connect_timeout": 1, "socket_timeout": 1},  # seconds
)


_limited: set[str] = set()  # names of views


def limited(setting: str) -> Callable[[View], View]:
    """Limit the requests of an address to the view, by a setting such as "30 per minute"."""

    def decorate(view: View) -> View:
        _limited.add(get_qualified_name(view))
        return cast(View, limiter.limit(lambda: str(current_app.config[setting]))(view))

    return decorate


@cache
def is_limited(view: Callable[..., Any]) -> bool:
    """Return whether requests to this view are counted by address."""
    return get_qualified_name(view) in _limited


def _on_rate_limit(error: RateLimitExceeded) -> Response:
    reset_at = limiter.current_limit.reset_at if limiter.current_limit else 0
    seconds = max(1, math.ceil(reset_at - time.time()))
    return errors.respond(
        errors.TooManyRequests(
            f"Too many requests from your address ({error.description}). Please wait {seconds} seconds.",
            headers={"Retry-After": str(seconds)},
        )
    )


def init_app(app: Flask) -> None:
    """Register the limiter, and wrap the hooks that it adds to the application."""
    hooks: Any = app.before_request_funcs[None], app.after_request_funcs[None], app.teardown_request_funcs[None]
    counts = [len(functions) for functions in hooks]
    limiter.init_app(app)
    app.register_error_handler(RateLimitExceeded, _on_rate_limit)
    for functions, count in zip(hooks, counts, strict=True):
        functions[count:] = [_where_limited(hook) for hook in functions[count:]]


def _where_limited(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Call a hook of Flask-Limiter only for views that have limits.

    Otherwise its hooks look for limits at every request: a guarded read then takes 190 µs of CPU instead of 135 µs.
    """

    def hooked(*args: Any) -> Any:
        view = current_app.view_functions.get(request.endpoint or "")
        if view and is_limited(view):
            return hook(*args)
        return args[0] if args else None  # a hook after a request returns the response

    return hooked
