"""The files of `make docs` and `make postman` are up to date, and the Postman collection runs."""

import importlib.util
import json
import os
import shutil
import subprocess
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


def test_postman_has_every_operation_and_each_step_of_the_story_has_tests(app: Flask) -> None:
    story, *folders = json.loads((ROOT / "docs/hosi.postman_collection.json").read_text("utf-8"))["item"]
    doc: Any = app.test_client().get("/openapi.json").json
    assert len(requests(folders)) == sum(len(item) for item in doc["paths"].values())
    assert all(any(event["listen"] == "test" for event in step["event"]) for step in story["item"])


@pytest.mark.skipif(NEWMAN is None, reason="newman is not installed (make newman)")
def test_the_story_runs_in_newman_and_renews_its_tokens(address: str, app: Flask, tmp_path: Path) -> None:
    usual = app.config["JWT_ACCESS_TOKEN_EXPIRES"]
    app.config["JWT_ACCESS_TOKEN_EXPIRES"] = timedelta(seconds=9)  # so that each request has to renew it
    try:
        run = subprocess.run(
            [
                *(str(NEWMAN), "run", "docs/hosi.postman_collection.json"),
                *("-e", "docs/hosi.postman_environment.json", "--env-var", f"base_url={address}"),
                *("--folder", "A day at the clinic", "--color", "off"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        app.config["JWT_ACCESS_TOKEN_EXPIRES"] = usual
    assert run.returncode == 0, run.stdout + run.stderr
    with app.app_context(), app.extensions["sqlalchemy"].engine.connect() as connection:
        renewed = connection.exec_driver_sql("SELECT generation FROM login_sessions").scalars().all()
    assert max(renewed) > 10
