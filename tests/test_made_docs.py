"""The files of `make docs` and `make postman` are up to date, and the Postman collection runs."""

import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

ROOT = Path(__file__).parent.parent
NEWMAN = shutil.which("newman", path=f"{ROOT / 'node_modules/.bin'}{os.pathsep}{os.environ.get('PATH', '')}")


def test_the_files_are_as_they_would_be_written_now() -> None:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "docs" / "make.py")
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    stale = [name for name, text in made.written().items() if (ROOT / "docs" / name).read_text("utf-8") != text]
    assert not stale, "run `make docs`"


def requests(items: list[Any]) -> list[Any]:
    return [one for item in items for one in (requests(item["item"]) if "item" in item else [item])]


COLLECTION: Any = json.loads((ROOT / "docs/hosi.postman_collection.json").read_text("utf-8"))


def test_postman_has_every_operation(app: Flask) -> None:
    _, *folders = COLLECTION["item"]
    doc: Any = app.test_client().get("/openapi.json").json
    assert len(requests(folders)) == sum(len(item) for item in doc["paths"].values())


@pytest.mark.parametrize("request_", requests(COLLECTION["item"]), ids=lambda request: request["name"])
def test_each_request_of_the_collection_has_a_test_of_its_status(request_: Any) -> None:
    tests = ["\n".join(event["script"]["exec"]) for event in request_["event"] if event["listen"] == "test"]
    assert any(re.search(r"pm\.test\(.+ => pm\.response\.to\.have\.status\(\d+\)", test) for test in tests)


ORDERS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "as in the file": lambda items: items,
    "reversed": lambda items: items[::-1],
    "shuffled": lambda items: random.Random(12).sample(items, len(items)),
}


@pytest.mark.slow
@pytest.mark.skipif(NEWMAN is None, reason="newman is not installed (make newman)")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_whole_collection_runs_in_any_order_and_renews_its_tokens(
    address: str, app: Flask, tmp_path: Path, order: str
) -> None:
    items = ORDERS[order](requests(COLLECTION["item"]))
    usual = app.config["JWT_ACCESS_TOKEN_EXPIRES"]
    app.config["JWT_ACCESS_TOKEN_EXPIRES"] = timedelta(seconds=9)  # so that each request has to renew it
    try:
        ran = run_newman({**COLLECTION, "item": items}, address, tmp_path)
    finally:
        app.config["JWT_ACCESS_TOKEN_EXPIRES"] = usual
    assert [failure["error"]["message"] for failure in ran["failures"]] == []
    checks = {(one["item"]["name"], check["assertion"]) for one in ran["executions"] for check in one["assertions"]}
    assert {name for name, check in checks if re.search(r": \d{3}$", check)} == {item["name"] for item in items}
    with app.app_context(), app.extensions["sqlalchemy"].engine.connect() as connection:
        renewed = connection.exec_driver_sql("SELECT generation FROM login_sessions").scalars().all()
    assert max(renewed) > 3


def run_newman(collection: Any, address: str, folder: Path) -> Any:
    """Run a collection with the environment of docs/, and return what newman reports."""
    (folder / "collection.json").write_text(json.dumps(collection), "utf-8")
    command = [
        *(str(NEWMAN), "run", str(folder / "collection.json"), "-e", "docs/hosi.postman_environment.json"),
        *("--env-var", f"base_url={address}", "--reporters", "cli,json", "--color", "off"),
        *("--reporter-json-export", str(folder / "report.json")),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert (folder / "report.json").exists(), done.stdout + done.stderr
    return json.loads((folder / "report.json").read_text("utf-8"))["run"]
