"""Links to local images: who may open them, and for how long."""

import io
import random
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from client import Client, assert_refused
from factories import files, make_patient, make_report, picture
from flask import Flask
from PIL import Image
from sql import snapshot, stored_files

from clinic import image_links
from server import pictures


@pytest.fixture
def link(doctor: Client) -> str:
    return str(make_report(doctor, make_patient(doctor)["id"])["images"][0]["image_url"])


def tampered(link: str, **parts: str) -> str:
    """The link's path and query, some parts of them otherwise."""
    url = urlsplit(link)
    path = f"/media/{parts.pop('key')}" if "key" in parts else url.path
    return f"{path}?{urlencode({**dict(parse_qsl(url.query)), **parts})}"


def test_a_link_opens_an_image_without_a_token(anonymous: Client, link: str) -> None:
    response = anonymous.get(link)
    assert response.status_code == 200
    assert response.data == picture()


def test_an_image_may_be_shown_by_another_origin_and_is_revalidated_each_time(anonymous: Client, link: str) -> None:
    headers = anonymous.get(link).headers
    assert headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert headers["Cache-Control"] == "private, no-cache"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Content-Type"] == "image/png"


def test_a_browser_that_has_the_image_is_told_that_it_is_the_same(anonymous: Client, link: str) -> None:
    etag = anonymous.get(link).headers["ETag"]
    unchanged = anonymous.get(link, headers={"If-None-Match": etag})
    assert (unchanged.status_code, unchanged.data, unchanged.headers["Cache-Control"]) == (
        304,
        b"",
        "private, no-cache",
    )
    assert anonymous.get(link, headers={"If-None-Match": '"another"'}).data == picture()
    assert anonymous.get(link, headers={"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}).status_code == 200


def test_a_user_gets_the_same_link_during_a_window(doctor: Client) -> None:
    address = f"/reports/{make_report(doctor, make_patient(doctor)['id'])['id']}"
    links = {doctor.get(address).json["images"][0]["image_url"] for _ in range(3)}
    if len(links) > 1:  # the window ended meanwhile
        links = {doctor.get(address).json["images"][0]["image_url"] for _ in range(3)}
    assert len(links) == 1


def test_a_link_ends_with_the_account_of_its_reader_and_opens_again_with_it(
    admin: Client, doctor: Client, anonymous: Client, link: str
) -> None:
    account = f"/user/{doctor.user['id']}"
    etag = anonymous.get(link).headers["ETag"]
    for change, status in (({"is_active": False}, 403), ({"is_active": True}, 200)):
        admin.patch(account, change)
        assert anonymous.get(link).status_code == status
    admin.delete(account)
    assert_refused(anonymous.get(link, headers={"If-None-Match": etag}), 403)


@pytest.mark.parametrize("archived", ["report", "patient", "image"])
def test_a_link_ends_with_its_image(admin: Client, doctor: Client, anonymous: Client, archived: str) -> None:
    patient = make_patient(doctor)["id"]
    report = make_report(doctor, patient)
    address, link = f"/reports/{report['id']}", report["images"][0]["image_url"]
    assert anonymous.get(link).status_code == 200
    if archived == "image":
        doctor.patch(address, data={"images": files(picture("JPEG")), "replace_images": "true"})
    else:
        admin.delete(address if archived == "report" else f"/patient/{patient}")
    assert_refused(anonymous.get(link), 404)
    if archived == "report":
        admin.post(f"{address}/restore")
        assert anonymous.get(link).status_code == 200


@pytest.mark.parametrize(
    "parts",
    [
        {"key": f"{'a' * 40}.png"},
        {"reader": "1"},
        {"reader": ""},
        {"expires": "99999999999"},
        {"expires": ""},
        {"expires": "never"},
        {"expires": "٩٩٩٩٩٩٩٩٩٩"},
        {"signature": "0" * 64},
        {"signature": ""},
        {"signature": "é" * 64},
        {"signature": "\0"},
        {"reader": "\U0001f47e", "signature": "\ud83d".encode("utf-8", "replace").decode()},
    ],
)
def test_a_link_that_was_tampered_with_is_refused(anonymous: Client, link: str, parts: dict[str, str]) -> None:
    assert_refused(anonymous.get(tampered(link, **parts)), 403)


@pytest.mark.parametrize("query", ["", "signature=%ff%fe", "expires=%00&reader=%ff&signature=%C3%A9", "signature[]=1"])
def test_rubbish_for_a_link_is_refused(anonymous: Client, link: str, query: str) -> None:
    assert_refused(anonymous.get(f"{urlsplit(link).path}?{query}"), 403)


@pytest.mark.parametrize("key", ["..%2f..%2fhosi.db", "%2e%2e", "secrets.env", "x" * 40 + ".png", "a" * 40, "é.png"])
def test_a_key_that_cannot_be_one_is_not_found(anonymous: Client, link: str, key: str) -> None:
    assert_refused(anonymous.get(f"/media/{key}?{urlsplit(link).query}"), 404)


def test_each_reader_has_a_link_of_their_own(doctor: Client, other_doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"])
    mine, theirs = (
        dict(parse_qsl(urlsplit(who.get(f"/reports/{report['id']}").json["images"][0]["image_url"]).query))
        for who in (doctor, other_doctor)
    )
    assert (mine["reader"], theirs["reader"]) == (str(doctor.user["id"]), str(other_doctor.user["id"]))
    assert mine["signature"] != theirs["signature"]


def test_a_link_lasts_an_hour_at_least_and_two_at_most(link: str) -> None:
    expires = int(dict(parse_qsl(urlsplit(link).query))["expires"])
    assert 3570 < expires - time.time() <= 7200


def test_a_link_lasts_as_long_as_the_setting_says(app: Flask, doctor: Client, make_app: Callable[..., Flask]) -> None:
    hasty = make_app(IMAGE_LINK_TTL=60, JWT_SECRET_KEY=app.config["JWT_SECRET_KEY"])
    link = make_report(Client(hasty, doctor.token), make_patient(doctor)["id"])["images"][0]["image_url"]
    assert 30 < int(dict(parse_qsl(urlsplit(link).query))["expires"]) - time.time() <= 120


def test_a_link_that_has_expired_is_refused(app: Flask, doctor: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    link = make_report(doctor, make_patient(doctor)["id"])["images"][0]["image_url"]
    expires = int(dict(parse_qsl(urlsplit(link).query))["expires"])
    for clock, status in ((expires - 1, 200), (expires + 1, 403)):
        monkeypatch.setattr(image_links.time, "time", lambda clock=clock: clock)
        assert Client(app).get(link).status_code == status


def test_a_link_is_of_no_use_at_a_server_with_another_secret(
    link: str, make_app: Callable[..., Flask], app: Flask
) -> None:
    other = make_app(SECRET_KEY="x" * 40, INSTANCE_PATH=app.config["INSTANCE_PATH"])
    assert_refused(Client(other).get(link), 403)


def test_links_are_built_from_the_public_url_not_from_the_host_header(
    app: Flask, doctor: Client, make_app: Callable[..., Flask]
) -> None:
    report = make_report(doctor, make_patient(doctor)["id"])
    public = make_app(PUBLIC_URL="https://api.clinic.example/", JWT_SECRET_KEY=app.config["JWT_SECRET_KEY"])
    read = Client(public, doctor.token).get(f"/reports/{report['id']}", headers={"Host": "evil.example"})
    assert read.json["images"][0]["image_url"].startswith("https://api.clinic.example/media/")


def test_the_link_of_an_image_that_is_gone_from_the_disk_is_not_found(app: Flask, anonymous: Client, link: str) -> None:
    for path in stored_files(app):
        path.unlink()
    assert_refused(anonymous.get(link), 404)


def test_local_images_are_no_static_files(app: Flask, anonymous: Client, link: str) -> None:
    [path] = stored_files(app)
    for guess in (f"/static/{path.name}", f"/media/{path.parent.name}/{path.name}", f"/instance/images/{path.name}"):
        assert anonymous.get(guess).status_code == 404


@pytest.mark.parametrize("how", ["filed", "changed"])
def test_no_connection_is_held_while_pictures_are_looked_at(app: Flask, doctor: Client, how: str) -> None:
    """A few megabytes can take seconds to decode: nobody's booking may wait for that."""
    patient = make_patient(doctor)
    report = make_report(doctor, patient["id"]) if how == "changed" else {}
    with app.app_context():
        pool: Any = app.extensions["sqlalchemy"].engine.pool
    held: list[int] = []

    def watch(frame: FrameType, kind: str, _: object) -> None:
        if kind == "call" and frame.f_code is pictures.check.__code__:
            held.append(pool.checkedout())

    sys.setprofile(watch)
    try:
        if how == "filed":
            make_report(doctor, patient["id"], picture(), picture("JPEG"))
        else:
            doctor.patch(f"/reports/{report['id']}", data={"images": files(picture(), picture("JPEG"))})
    finally:
        sys.setprofile(None)
    assert held == [0, 0]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the database makes no difference
def test_a_tiff_whose_png_is_over_twenty_megabytes_is_refused(app: Flask, doctor: Client) -> None:
    noise = Image.frombytes("RGB", (3000, 2500), random.Random(1).randbytes(3000 * 2500 * 3))
    file = io.BytesIO()
    noise.save(file, "TIFF", compression="jpeg", quality=50)
    assert len(file.getvalue()) < 20 << 20
    patient, before = make_patient(doctor), snapshot(app)
    refused = doctor.post("/reports", data={"patient_id": patient["id"], "images": files(file.getvalue())})
    assert_refused(refused, 422, "images")
    assert "as a PNG, is larger than 20 MB" in refused.json["msg"]
    assert snapshot(app)["reports"] == before["reports"]
    assert stored_files(app) == []
