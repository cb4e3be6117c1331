"""Every route declares its guard, contract and docstring. Modules import downwards only."""

import ast
import re
import sys
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from client import Client, assert_refused
from flask import Blueprint, Flask, Response
from pydantic import BaseModel, Field
from werkzeug.routing import Rule

from app import api, create_app
from clinic.rights import ADMIN, guard
from server.endpoint import PUBLIC, Access, contract, public
from server.web import LARGEST_ID

ROOT = Path(__file__).resolve().parent.parent
STATIC_FILES = {"static"}  # Flask's own view of the files in static/, which are public


def rules(app: Flask) -> list[Rule]:
    return [rule for rule in app.url_map.iter_rules() if rule.endpoint not in STATIC_FILES]


def view_name(rule: Rule) -> str:
    return rule.endpoint.rpartition(".")[2]


def access(app: Flask, rule: Rule) -> Access:
    view: Any = app.view_functions[rule.endpoint]
    return view.access  # type: ignore[no-any-return]


def address(rule: Rule) -> str:
    """Return an address of this rule that names no record."""
    made = rule.build({name: "77" if name == "key" else 77 for name in rule.arguments})
    assert made is not None
    return made[1]


def methods(rule: Rule) -> set[str]:
    return (rule.methods or set()) - {"HEAD", "OPTIONS"}


def test_there_are_routes(migrated: Flask) -> None:
    assert len(rules(migrated)) > 25


def test_the_public_routes_are_these_alone(migrated: Flask) -> None:
    assert {view_name(rule) for rule in rules(migrated) if access(migrated, rule) is PUBLIC} == {
        *("index", "docs", "reset_password_page", "openapi_document", "healthz", "readyz", "get_metrics"),
        *("signup", "login", "refresh", "forgot_password", "reset_password"),
        "media_file",
    }


def test_nobody_gets_past_a_guard_without_a_token(app: Flask, anonymous: Client) -> None:
    for rule in rules(app):
        if access(app, rule) is not PUBLIC:
            for method in methods(rule):
                assert_refused(anonymous.send(method, address(rule)), 401)


def test_a_doctor_gets_past_every_guard_but_the_administrators(app: Flask, doctor: Client) -> None:
    leaving = {"logout"}  # would end the login of the other requests
    for rule in rules(app):
        if access(app, rule) is PUBLIC or view_name(rule) in leaving:
            continue
        for method in methods(rule):
            status = doctor.send(method, address(rule)).status_code
            refused = access(app, rule) is ADMIN
            assert (status == 403) is refused, f"{method} {rule}: {status}"
            assert status != 401, f"{method} {rule}"


def test_an_administrator_gets_past_every_guard(app: Flask, admin: Client) -> None:
    leaving = {"logout"}
    for rule in rules(app):
        if access(app, rule) is PUBLIC or view_name(rule) in leaving:
            continue
        for method in methods(rule):
            assert admin.send(method, address(rule)).status_code not in (401, 403), f"{method} {rule}"


# --- A view that lacks something ---


class Slot(BaseModel):
    doctor_name: str = Field(examples=["Tomás Okafor"])


class Undescribed(BaseModel):
    doctor_name: str


def usual(view: Any) -> Any:
    return public(contract(tag="Appointments")(view))


def list_slots() -> list[Slot]:
    """List free slots."""
    return [Slot(doctor_name="Dora Otieno")]


def without_docstring() -> Slot:
    return Slot(doctor_name="Dora Otieno")


def with_undescribed_answer() -> list[Undescribed]:
    """List free slots."""
    return []


def with_undescribed_body(json: Undescribed) -> Slot:
    """Make a slot."""
    return Slot(doctor_name=json.doctor_name)


def with_its_own_response() -> Response:
    """Draw the free slots."""
    return Response(b"")


def get_patient() -> Slot:
    """Have a name that is taken."""
    return Slot(doctor_name="Dora Otieno")


def app_with(view: Any, folder: Path, path: str = "/times") -> Flask:
    """Return the application with one more view."""
    scratch = Blueprint("scratch", __name__)
    scratch.add_url_rule(path, view_func=view, methods=["GET" if "body" not in view.__name__ else "POST"])
    return create_app({"FLASK_ENV": "testing", "INSTANCE_PATH": folder}, [api, scratch])


def test_a_view_that_says_all_of_it_is_served_and_described(tmp_path: Path) -> None:
    client = app_with(usual(list_slots), tmp_path).test_client()
    assert client.get("/times").json == [{"doctor_name": "Dora Otieno"}]
    described: Any = client.get("/openapi.json").json
    assert described["paths"]["/times"]["get"]["summary"] == "List free slots"


@pytest.mark.parametrize(
    ("view", "fault"),
    [
        (list_slots, "does not say who may call it"),
        (contract(tag="Appointments")(list_slots), "does not say who may call it"),
        (public(wraps(list_slots)(lambda: "x")), "has no contract"),
        (public(contract()(list_slots)), "has the tag ''"),
        (public(contract(tag="Slots")(list_slots)), "has the tag 'Slots', which is not one of Accounts, Staff"),
        (public(contract(tag="Staff", errors=(418,))(list_slots)), "has the errors [418]"),
        (usual(without_docstring), "has no docstring"),
        (usual(with_undescribed_answer), "has the field Undescribed.doctor_name without an example"),
        (usual(with_undescribed_body), "has the field Undescribed.doctor_name without an example"),
        (usual(with_its_own_response), "returns a Response: describe it"),
        (usual(get_patient), "shares its name with another route"),
    ],
)
def test_a_view_that_lacks_something_stops_the_start_with_its_name(view: Any, fault: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=rf"^The view {view.__name__} \(.*{re.escape(fault)}"):
        app_with(view, tmp_path)


@pytest.mark.parametrize(
    ("decorate", "fault"),
    [
        (lambda view: contract(tag="Staff")(guard(ADMIN)(view)), "above @contract"),
        (lambda view: public(guard(ADMIN)(view)), "says twice who may call it"),
        (lambda view: guard(ADMIN)(public(view)), "says twice who may call it"),
    ],
)
def test_decorators_in_an_order_that_opens_a_view_are_refused_where_they_stand(decorate: Any, fault: str) -> None:
    def fresh() -> Slot:
        """Leave no mark on the views of other tests."""
        return Slot(doctor_name="Dora Otieno")

    with pytest.raises(RuntimeError, match=f"^The view fresh .*{fault}"):
        decorate(fresh)


def test_a_contract_needs_the_type_of_the_answer() -> None:
    def silent():  # type: ignore[no-untyped-def]
        """Answer something."""

    with pytest.raises(RuntimeError, match=r"^The view silent does not say what it returns"):
        contract(tag="Staff")(silent)


def test_the_largest_id_is_the_largest_that_an_address_may_have(app: Flask, admin: Client) -> None:
    assert admin.get(f"/patient/{LARGEST_ID}").json["msg"] == f"There is no patient {LARGEST_ID}."
    assert admin.get(f"/patient/{LARGEST_ID + 1}").json["msg"] != f"There is no patient {LARGEST_ID + 1}."


# --- The modules ---

# From top to bottom: a module imports only its own layer and those below it.
LAYERS = ({"serve"}, {"app", "cli"}, {"clinic"}, {"schemas"}, {"models"}, {"server"}, {"config"}, {"database_url"})
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
    """Return our layers that a file imports, anywhere in the file."""
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


def test_only_what_serves_imports_app() -> None:
    files = [*MODULES.values(), *(ROOT / "migrations").rglob("*.py")]
    assert [file.name for file in files if "app" in imported(file)] == ["serve.py"]


def test_the_imports_are_really_read() -> None:
    assert {"clinic", "models", "schemas", "server"} <= imported(MODULES["app"])


def test_no_top_level_module_is_named_like_one_of_the_standard_librarys() -> None:
    assert not ROW.keys() & sys.stdlib_module_names
