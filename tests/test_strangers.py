"""What a stranger may cost: addresses, bodies, query strings and forms that are refused early and answered briefly."""

import pytest
from client import Client
from flask import Flask
from werkzeug.routing import Rule

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")


def odd_addresses(rule: Rule) -> list[str]:
    """Return addresses like one of this rule, with slashes too many."""
    made = rule.build({name: "77" if name in ("key", "filename") else 77 for name in rule.arguments})
    assert made is not None
    path = made[1]
    return [f"{path}//", f"/{path}", f"//evil.example{path}", path.replace("/", "//"), f"{path}/"]


@pytest.mark.parametrize("method", METHODS)
def test_no_address_is_redirected_by_the_host_header(migrated: Flask, method: str) -> None:
    for rule in migrated.url_map.iter_rules():
        for path in odd_addresses(rule):
            raw = {"PATH_INFO": path}  # the test client reads `//evil.example` as a host
            answer = Client(migrated).send(method, "/", headers={"Host": "evil.example"}, environ_overrides=raw)
            assert not 300 <= answer.status_code < 400, f"{path} leads to {answer.headers.get('Location')}"
