"""Every route is guarded or named as public, and the modules look one way."""

import ast
import sys
from pathlib import Path

import pytest
from conftest import Client, assert_refused
from flask import Flask
from werkzeug.routing import Rule

from clinic.rights import POLICY, Who

ROOT = Path(__file__).resolve().parent.parent
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

# From top to bottom: a module imports only its own layer and those below it.
LAYERS = ({"app", "cli"}, {"clinic"}, {"schemas"}, {"models"}, {"server"}, {"config"})
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for pattern in ("*.py", "server/**/*.py", "clinic/**/*.py")
    for path in ROOT.glob(pattern)
    if path.stem.isidentifier()
}


def layer(module: str) -> str:
    return module.partition(".")[0]


def imported(path: Path) -> set[str]:
    """The layers of ours that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {layer(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(layer(node.module or ""))
            assert node.level == 0, f"{path}: relative imports hide the layer"
    return found & ROW.keys()


def test_every_module_has_its_layer() -> None:
    assert {layer(module) for module in MODULES} == ROW.keys()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_its_own_layer_and_those_below(module: str) -> None:
    upward = {other for other in imported(MODULES[module]) if ROW[other] < ROW[layer(module)]}
    assert upward == set()


def test_nothing_imports_app() -> None:
    files = [*MODULES.values(), *(ROOT / "migrations").rglob("*.py"), ROOT / "gunicorn.conf.py"]
    assert [file.name for file in files if "app" in imported(file)] == []


def test_the_imports_are_really_read() -> None:
    assert {"clinic", "models", "schemas", "server"} <= imported(MODULES["app"])


def test_no_top_level_module_is_named_like_one_of_the_standard_librarys() -> None:
    assert not ROW.keys() & sys.stdlib_module_names
