"""The modules of docs/spa.md, run by Node against the server as an app would use them."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from client import Client
from factories import PASSWORD, claims_of, forged, make_patient, new_login
from flask import Flask, request, request_started

ROOT = Path(__file__).parent.parent
NODE = shutil.which("node")
PAGE = (ROOT / "docs/spa.md").read_text("utf-8")


def blocks(flavour: str) -> list[str]:
    """Return the blocks of JavaScript below the heading of this flavour: the module, then an example of its use."""
    below = PAGE.partition(f"## With {flavour}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```js\n(.*?)^```$", below, re.MULTILINE | re.DOTALL)


@pytest.fixture(params=["axios", "fetch"])
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def told(flavour: str, app: Flask, admin: Client, address: str, tmp_path: Path) -> dict[str, Any]:
    """What the app saw of a server whose lists lead on by relative addresses."""
    return story(flavour, app, admin, address, tmp_path)


def story(flavour: str, app: Flask, admin: Client, address: str, folder: Path) -> dict[str, Any]:
    """Run tests/spa_story.mjs with the module of this flavour. Return what it tells, and the paths it asked for."""
    if NODE is None:
        pytest.skip("Node is not installed (Debian: apt-get install nodejs)")
    if flavour == "axios" and not (ROOT / "node_modules/axios").exists():
        pytest.skip("axios is not installed (make newman)")
    for status in ("admitted", "critical", "admitted", "healed"):
        make_patient(admin, status=status)
    (folder / "node_modules").symlink_to(ROOT / "node_modules")
    module = blocks(flavour)[0].replace("http://127.0.0.1:5000", address)
    (folder / "client.mjs").write_text(module, "utf-8")
    expired = forged(app, {**claims_of(new_login(app, "Ada")["access_token"]), "exp": int(time.time()) - 60})
    arguments = [str(folder / "client.mjs"), flavour, address, expired, "ada@clinic.test", PASSWORD]
    command = [NODE, str(ROOT / "tests/spa_story.mjs"), *arguments]
    paths: list[str] = []

    def note(_: Flask) -> None:
        paths.append(request.path)

    with request_started.connected_to(note, app):
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return {**json.loads(ran.stdout), "paths": paths}


on_one_engine = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the modules know no other


@on_one_engine
def test_an_app_signs_in_and_the_import_alone_sends_nothing(told: dict[str, Any]) -> None:
    assert told["paths"][:3] == ["/login", "/login", "/patients"]
    assert told["wrongPassword"] == 401
    assert told["user"] == "ada@clinic.test"


@on_one_engine
def test_an_app_reads_the_total_and_the_next_page_of_a_list_with_two_words(told: dict[str, Any]) -> None:
    assert told["total"] == 3
    assert told["pages"] == [2, 1]


@on_one_engine
def test_the_next_page_may_have_a_whole_address(
    flavour: str, app: Flask, admin: Client, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(app.config, "PUBLIC_URL", address)
    assert story(flavour, app, admin, address, tmp_path)["pages"] == [2, 1]


@on_one_engine
def test_an_app_changes_what_it_has_read_and_learns_that_it_is_too_late(told: dict[str, Any]) -> None:
    assert told["diagnosis"] == "Malaria"
    assert told["tooLate"] == 412


@on_one_engine
def test_two_requests_at_once_refresh_once(told: dict[str, Any]) -> None:
    assert told["atOnce"] == ["ada@clinic.test"] * 2
    assert told["endedEarly"] == 0
    assert told["paths"].count("/refresh") == 2  # the second one finds that the login has ended


@on_one_engine
def test_the_end_of_the_login_is_told_once_and_leaves_no_token(told: dict[str, Any]) -> None:
    assert told["afterTheEnd"] == [401, 401]
    assert told["ended"] == 1
    assert told["left"] == told["leftAfterLogout"] == 0


def test_the_example_is_in_a_block_of_its_own(flavour: str) -> None:
    module, example = blocks(flavour)
    assert "export const onLoginEnded" in module
    assert "await login(" in example
    assert "await login(" not in module
