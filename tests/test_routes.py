"""Every route is guarded or named as public, and the modules look one way."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Client, assert_refused
from flask import Flask
from werkzeug.routing import Rule

import auth
from auth import POLICY, Who

ROOT = Path(auth.__file__).parent
FILES_OF_OURS = {"static"}  # Flask's own view for what lies in static/, which is for anyone


def rules(app: Flask) -> list[Rule]:
    return [rule for rule in app.url_map.iter_rules() if rule.endpoint not in FILES_OF_OURS]


def view_name(rule: Rule) -> str:
    return rule.endpoint.rpartition(".")[2]


def address(rule: Rule) -> str:
    """An address of this rule, where there is no record."""
    made = rule.build({name: "77" if name == "key" else 77 for name in rule.arguments})
    assert made is not None
    return made[1]


def methods(rule: Rule) -> set[str]:
    return (rule.methods or set()) - {"HEAD", "OPTIONS"}


def test_there_are_routes(migrated: Flask) -> None:
    assert len(rules(migrated)) > 25


def test_every_route_is_guarded_or_stands_in_the_list_of_public_ones(migrated: Flask) -> None:
    for rule in rules(migrated):
        view = migrated.view_functions[rule.endpoint]
        public = POLICY[view_name(rule)] is Who.ANYONE
        assert getattr(view, "guarded", False) is not public, f"{rule} is {'guarded' if public else 'open'}"


def test_no_row_of_the_policy_is_without_a_route(migrated: Flask) -> None:
    assert POLICY.keys() == {view_name(rule) for rule in rules(migrated)}


def test_nobody_gets_past_a_guard_without_a_token(app: Flask, anonymous: Client) -> None:
    for rule in rules(app):
        if POLICY[view_name(rule)] is not Who.ANYONE:
            for method in methods(rule):
                assert_refused(anonymous.send(method, address(rule)), 401)


def test_a_doctor_gets_past_every_guard_but_the_administrators(app: Flask, doctor: Client) -> None:
    leaving = {"logout"}  # which would end the login that the other routes are tried with
    for rule in rules(app):
        if POLICY[view_name(rule)] is Who.ANYONE or view_name(rule) in leaving:
            continue
        for method in methods(rule):
            status = doctor.send(method, address(rule)).status_code
            refused = POLICY[view_name(rule)] is Who.ADMIN
            assert (status == 403) is refused, f"{method} {rule}: {status}"
            assert status != 401, f"{method} {rule}"


def test_an_administrator_gets_past_every_guard(app: Flask, admin: Client) -> None:
    leaving = {"logout"}
    for rule in rules(app):
        if POLICY[view_name(rule)] is Who.ANYONE or view_name(rule) in leaving:
            continue
        for method in methods(rule):
            assert admin.send(method, address(rule)).status_code not in (401, 403), f"{method} {rule}"


# --- The modules ---

# From top to bottom; a module imports only from rows below its own.
LAYERS = (
    {"app"},
    {"cli"},
    {"seed"},
    {"auth"},
    {"media"},
    {"paging", "idempotency", "mail"},
    {"audit"},
    {"openapi"},
    {"contract"},
    {"schemas"},
    {"reading"},
    {"models", "forms"},
    {"database"},
    {"errors"},
    {"config", "pictures", "words"},
)
ROW = {module: row for row, modules in enumerate(LAYERS) for module in modules}
MODULES = {path.stem: path for path in ROOT.glob("*.py") if path.stem.isidentifier()}


def imported(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield node.module


def test_every_module_has_its_place() -> None:
    assert MODULES.keys() <= ROW.keys()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_is_below_it(module: str) -> None:
    upward = [other for other in imported(MODULES[module]) if ROW[other] <= ROW[module]]
    assert upward == []


def test_nothing_imports_app() -> None:
    files = [*MODULES.values(), *(ROOT / "migrations").rglob("*.py"), ROOT / "gunicorn.conf.py"]
    assert [file.name for file in files if "app" in imported(file)] == []


def test_the_imports_are_really_read() -> None:
    assert {"auth", "models", "schemas"} <= set(imported(MODULES["app"]))


def test_no_module_is_named_like_one_of_the_standard_librarys() -> None:
    assert not MODULES.keys() & sys.stdlib_module_names
