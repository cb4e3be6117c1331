"""Nodes that keep images on disks of their own: the log says so."""

from collections.abc import Callable
from pathlib import Path

import pytest
from client import Client
from factories import MakeApp, make_patient, make_report
from flask import Flask
from sql import rows, sql

from clinic import nodes
from testing.s3_double import S3Double

PUBLIC = {"PUBLIC_URL": "https://api.clinic.example"}
SAID = "keeps images of its own"


@pytest.fixture
def node(app: Flask, make_app: MakeApp, own_folder: Path) -> Callable[..., Client]:
    """A client of a node that has just started, with this folder."""

    def start(name: str, **settings: str) -> Client:
        return Client(make_app(**PUBLIC, INSTANCE_PATH=own_folder / name, **settings))

    return start


def test_the_second_of_two_nodes_with_own_disks_says_so_once(
    app: Flask, node: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    assert node("first").get("/patients").status_code == 401
    assert SAID not in caplog.text
    second = node("second")
    for _ in range(3):
        second.get("/patients")
    assert caplog.text.count(SAID) == 1
    assert len(rows(app, "SELECT id FROM nodes")) == 2


def test_nodes_that_share_their_images_are_one(
    app: Flask, node: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        node("shared").get("/patients")
    assert SAID not in caplog.text
    assert len(rows(app, "SELECT id FROM nodes")) == 1


def test_a_node_that_was_not_seen_for_an_hour_is_forgotten(
    app: Flask, node: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    node("first").get("/patients")
    sql(app, "UPDATE nodes SET seen_at = '2020-01-01 00:00:00.000000'")
    node("second").get("/patients")
    assert SAID not in caplog.text
    assert len(rows(app, "SELECT id FROM nodes")) == 1


def test_a_node_that_goes_on_is_seen_again(
    app: Flask, node: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "REFRESH", 0)
    first = node("first")
    first.get("/patients")
    before = rows(app, "SELECT seen_at FROM nodes")
    first.get("/patients")
    assert rows(app, "SELECT seen_at FROM nodes") > before


def test_nodes_with_images_on_s3_and_servers_of_development_are_not_noted(
    app: Flask, node: Callable[..., Client], s3: S3Double
) -> None:
    node("first", **s3.settings).get("/patients")
    Client(app).get("/patients")
    assert rows(app, "SELECT id FROM nodes") == []


def test_a_probe_of_the_process_asks_the_database_for_nothing(app: Flask, node: Callable[..., Client]) -> None:
    assert node("first").get("/healthz").status_code == 200
    assert rows(app, "SELECT id FROM nodes") == []


def test_the_id_of_a_node_is_no_picture(node: Callable[..., Client], doctor: Client) -> None:
    client = node("first", JWT_SECRET_KEY=doctor.app.config["JWT_SECRET_KEY"])
    client.token = doctor.token
    make_report(client, make_patient(client)["id"])
    result = client.app.test_cli_runner().invoke(args=["images", "verify"])
    assert result.exit_code == 0, result.output
