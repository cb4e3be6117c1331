"""Images on S3: uploads, links, thumbnails, and an S3 that fails. The double of S3 checks every signature."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from client import Client, assert_refused, run_cli, wait_until
from factories import MakeApp, files, make_patient, make_report, picture, reported
from flask import Flask
from PIL import Image
from sql import connections_in_use, rows, snapshot, sql, stored_files

from clinic.stores import s3 as s3_store
from testing.s3_double import How, S3Double, Stored

LARGE = picture("PNG", (1300, 900))
OTHER = picture("PNG", (1300, 900), "red")


def first_image(client: Client, *contents: bytes) -> dict[str, Any]:
    return dict(make_report(client, make_patient(client)["id"], *(contents or (LARGE,)))["images"][0])


def size_of(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content)) as image:
        return image.size


@pytest.fixture
def image(on_s3: Client) -> dict[str, Any]:
    return first_image(on_s3)


# --- Uploads ---


def test_an_image_goes_to_s3_and_comes_back_by_a_link_of_ours(
    s3: S3Double, s3_app: Flask, image: dict[str, Any]
) -> None:
    [name] = s3.pictures()
    assert (len(name), s3.stored[name].content, s3.stored[name].headers["content-type"]) == (40, LARGE, "image/png")
    assert stored_files(s3_app) == []
    assert f"/media/{name}.png?" in image["image_url"]
    shown = Client(s3_app).get(image["image_url"])
    assert (shown.status_code, shown.data, shown.mimetype) == (200, LARGE, "image/png")
    assert int(shown.headers["Content-Length"]) == len(LARGE)
    assert shown.headers["Cache-Control"] == "private, no-cache"
    assert s3.url not in str(image)


def test_an_image_has_a_thumbnail_from_its_upload_on(s3: S3Double, s3_app: Flask, image: dict[str, Any]) -> None:
    gets = s3.count("get")
    shown = Client(s3_app).get(image["thumbnail_url"])
    assert (shown.status_code, shown.mimetype, size_of(shown.data)) == (200, "image/webp", (320, 222))
    assert s3.count("get") == gets + 1


def test_a_small_picture_is_its_own_thumbnail(s3: S3Double, on_s3: Client) -> None:
    image = first_image(on_s3, picture())
    assert image["thumbnail_url"] == image["image_url"]
    assert list(s3.stored) == s3.pictures()


def test_a_thumbnail_that_s3_does_not_take_fails_no_upload(s3: S3Double, s3_app: Flask, on_s3: Client) -> None:
    s3.fail(2, "500", "put")
    image = first_image(on_s3)
    assert Client(s3_app).get(image["thumbnail_url"]).data == LARGE


def test_a_browser_that_has_the_picture_asks_s3_for_nothing(s3: S3Double, s3_app: Flask, image: dict[str, Any]) -> None:
    for link in (image["image_url"], image["thumbnail_url"]):
        etag = Client(s3_app).get(link).headers["ETag"]
        calls = len(s3.requests)
        again = Client(s3_app).get(link, headers={"If-None-Match": etag})
        assert (again.status_code, again.data, again.headers["Cache-Control"]) == (304, b"", "private, no-cache")
        assert len(s3.requests) == calls
        assert Client(s3_app).get(link, headers={"If-None-Match": '"another"'}).status_code == 200


def test_a_browser_that_has_the_picture_for_want_of_a_thumbnail_gets_the_thumbnail_once_there_is_one(
    s3: S3Double, s3_app: Flask, image: dict[str, Any]
) -> None:
    [name] = [name for name in s3.stored if name.endswith(".thumb.webp")]
    thumbnail = s3.stored.pop(name)
    etag = Client(s3_app).get(image["thumbnail_url"]).headers["ETag"]
    again = Client(s3_app).get(image["thumbnail_url"], headers={"If-None-Match": etag})
    assert (again.status_code, again.data) == (304, b"")
    s3.stored[name] = thumbnail
    assert Client(s3_app).get(image["thumbnail_url"], headers={"If-None-Match": etag}).data == thumbnail.content


def test_a_link_ends_with_the_rights_of_its_reader_and_with_its_report(
    s3_app: Flask, admin: Client, on_s3: Client, image: dict[str, Any]
) -> None:
    key = image["image_url"].partition("/media/")[2].partition("?")[0]
    assert_refused(Client(s3_app).get(f"/media/{key}"), 403)
    assert_refused(Client(s3_app).get(image["image_url"].replace(".png?", ".jpeg?")), 403)
    account = f"/user/{on_s3.user['id']}"
    for change, status in (({"is_active": False}, 403), ({"is_active": True}, 200)):
        admin.patch(account, change)
        assert Client(s3_app).get(image["image_url"]).status_code == status
    admin.delete("/reports/1")
    assert_refused(Client(s3_app).get(image["image_url"]), 404)


@pytest.mark.parametrize("how", ["500", "drop", "drop_after", b"<html>"], ids=str)
def test_when_the_third_of_five_images_fails_none_stays(app: Flask, s3: S3Double, on_s3: Client, how: How) -> None:
    patient = make_patient(on_s3)
    before = snapshot(app)
    s3.fail_from(3, how, "put")
    refused = on_s3.post("/reports", **reported(patient["id"], *[picture()] * 5))
    assert_refused(refused, 502)
    assert refused.json["code"] == "store_failed"
    for secret in (s3.access_key, s3.secret_key, s3.url, "S3", "Internal"):
        assert secret not in refused.text
    assert s3.stored == {}
    assert snapshot(app) == before


def test_what_could_not_be_taken_back_is_swept_by_purge(app: Flask, s3: S3Double, on_s3: Client) -> None:
    patient = make_patient(on_s3)
    s3.fail(2, "500", "put")
    s3.fail(1, "500", "delete")
    assert_refused(on_s3.post("/reports", **reported(patient["id"], *[picture()] * 3)), 502)
    assert s3.stored
    assert run_cli(on_s3.app, "purge")[0] == 0
    assert s3.stored == {}
    assert rows(app, "SELECT * FROM uploads") == []


def test_a_purge_erases_picture_and_thumbnail(
    s3: S3Double, s3_app: Flask, on_s3: Client, image: dict[str, Any]
) -> None:
    kept = first_image(on_s3)
    on_s3.delete("/reports/1")
    assert len(s3.stored) == 4
    assert run_cli(s3_app, "purge", "--older-than", "0h")[0] == 0
    assert len(s3.stored) == 2
    assert Client(s3_app).get(kept["image_url"]).data == LARGE


def test_wrong_credentials_are_a_502_and_a_line_in_the_log(
    app: Flask, s3: S3Double, make_app: MakeApp, doctor: Client, caplog: pytest.LogCaptureFixture
) -> None:
    for wrong, said in (
        ({"S3_SECRET_KEY": "another"}, "SignatureDoesNotMatch"),
        ({"S3_ACCESS_KEY": "another"}, "InvalidAccessKeyId"),
        ({"S3_BUCKET": "another"}, "NoSuchBucket"),
        ({"S3_REGION": "eu-north-1"}, "eu-north-1"),
    ):
        wrongly = make_app(**{**s3.settings, **wrong}, INSTANCE_PATH=app.config["INSTANCE_PATH"])
        sender = Client(wrongly, doctor.token, doctor.user)
        caplog.clear()
        assert_refused(sender.post("/reports", **reported(make_patient(sender)["id"], picture())), 502)
        if said != "eu-north-1":
            assert said in caplog.text
    assert s3.stored == {}


# --- An S3 that fails a reader ---


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("500", 502),
        ("drop", 502),
        ("cut_short", 502),
        ("swap", 502),
        (b"<html>", 502),
        (LARGE + b"a", 502),
        ("lose", 404),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_picture_that_s3_does_not_give_whole_is_never_shown(
    s3: S3Double, s3_app: Flask, on_s3: Client, image: dict[str, Any], how: How, status: int
) -> None:
    first_image(on_s3, OTHER)
    s3.fail_always(how, "get")
    refused = Client(s3_app).get(image["image_url"])
    assert_refused(refused, status)
    assert b"PNG" not in refused.data
    assert refused.json["code"] == ("store_failed" if status == 502 else "not_found")


def test_anothers_thumbnail_is_not_shown(
    s3: S3Double, s3_app: Flask, on_s3: Client, image: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    first_image(on_s3, OTHER)
    s3.fail(1, "swap", "get")
    shown = Client(s3_app).get(image["thumbnail_url"])
    assert (shown.status_code, shown.data) == (200, LARGE)
    assert "gives another thumbnail" in caplog.text


def test_a_thumbnail_that_was_copied_over_by_hand_is_not_shown(
    s3: S3Double, s3_app: Flask, on_s3: Client, image: dict[str, Any]
) -> None:
    first_image(on_s3, OTHER)
    first, second = (name for name in s3.stored if name.endswith(".thumb.webp"))
    s3.stored[first] = s3.stored[second]
    assert Client(s3_app).get(image["thumbnail_url"]).data == LARGE


def test_a_reader_waits_for_a_slow_s3_no_longer_than_the_deadline_and_holds_no_connection(
    s3: S3Double, s3_app: Flask, image: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_store, "FETCH_TIMEOUT", 1.5)
    for how in ("hang", "trickle"):
        s3.fail_always(how, "get")
        gets, began = s3.count("get"), time.monotonic()
        with ThreadPoolExecutor(1) as person:
            answer = person.submit(Client(s3_app).get, image["image_url"])
            wait_until(lambda gets=gets: s3.count("get") > gets)  # type: ignore[misc]
            assert connections_in_use(s3_app) == 0
            assert_refused(answer.result(), 502)
        assert time.monotonic() - began < 4


def test_while_s3_hangs_half_of_the_threads_wait_and_the_others_go_on(
    app: Flask, s3: S3Double, make_app: MakeApp, doctor: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sixteen = make_app(**s3.settings, INSTANCE_PATH=app.config["INSTANCE_PATH"], WEB_THREADS=16)
    link = first_image(Client(sixteen, doctor.token, doctor.user))["image_url"]
    monkeypatch.setattr(s3_store, "PATIENCE", 0.2)
    s3.fail_always("hang", "get")
    with ThreadPoolExecutor(9) as readers:
        answers = [readers.submit(Client(sixteen).get, link) for _ in range(9)]
        wait_until(lambda: any(answer.done() for answer in answers))
        assert s3.count("get") == 8
        assert [answer.result().status_code for answer in answers if answer.done()] == [502]
        s3.recover()
    assert sorted(answer.result().status_code for answer in answers) == [200] * 8 + [502]


def test_an_upload_to_an_s3_that_hangs_ends_by_its_deadline(
    app: Flask, s3: S3Double, on_s3: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_store, "UPLOAD_TIMEOUT", 1.0)
    s3.fail_always("hang", "put")
    patient, began = make_patient(on_s3)["id"], time.monotonic()
    assert_refused(on_s3.post("/reports", **reported(patient, picture())), 502)
    assert time.monotonic() - began < 4
    assert rows(app, "SELECT id FROM images") == rows(app, "SELECT * FROM uploads") == []


def test_without_s3s_settings_its_images_are_a_502(
    app: Flask, doctor: Client, image: dict[str, Any], make_app: MakeApp
) -> None:
    without = make_app(INSTANCE_PATH=app.config["INSTANCE_PATH"])
    link = Client(without, doctor.token).get("/reports/1").json["images"][0]["image_url"]
    assert_refused(Client(without).get(link), 502)
    code, said = run_cli(without, "images", "verify")
    assert (code, "cannot be looked up: set the credentials of S3" in said) == (1, True)
    code, said = run_cli(without, "images", "thumbnails")
    assert (code, "S3, whose credentials are not set" in said) == (1, True)


# --- flask images ---


@pytest.mark.parametrize("page_size", [1000, 1])
def test_pictures_on_s3_are_compared(s3: S3Double, s3_app: Flask, on_s3: Client, page_size: int) -> None:
    s3.page_size = page_size
    make_report(on_s3, make_patient(on_s3)["id"], LARGE, picture("JPEG"), picture("GIF"))
    assert run_cli(s3_app, "images", "verify")[0] == 0
    gone = next(name for name in s3.pictures() if name + ".thumb.webp" not in s3.stored)
    s3.stored["stray"], s3.stored["f.thumb.webp"] = s3.stored.pop(gone), Stored(b"", {})
    code, said = run_cli(s3_app, "images", "verify")
    assert (code, "Error: 3 found." in said) == (1, True)
    assert f"has no picture on S3: {gone}\n" in said
    assert "a picture on S3 belongs to no image: stray\n" in said
    assert "a thumbnail on S3 belongs to no image: f\n" in said


def test_the_command_makes_the_thumbnails_that_s3_lacks(s3: S3Double, s3_app: Flask, on_s3: Client) -> None:
    make_report(on_s3, make_patient(on_s3)["id"], LARGE, picture(), OTHER)
    before = dict(s3.stored)
    gone = next(name for name in s3.stored if name.endswith(".thumb.webp"))
    del s3.stored[gone]
    code, said = run_cli(s3_app, "images", "thumbnails")
    assert (code, said.endswith("Every image on the local disk and S3 has its thumbnail.\n")) == (0, True), said
    assert s3.stored == before
    assert s3.count("put") == 6


def test_the_command_names_the_pictures_that_s3_lost_or_mixed_up(s3: S3Double, s3_app: Flask, on_s3: Client) -> None:
    report = make_report(on_s3, make_patient(on_s3)["id"], LARGE, OTHER)
    for name in list(s3.stored):
        if name.endswith(".thumb.webp"):
            del s3.stored[name]
    first, second = s3.pictures()
    s3.stored[first] = s3.stored[second]
    del s3.stored[second]
    code, said = run_cli(s3_app, "images", "thumbnails")
    assert (code, "Error: 2 found." in said) == (1, True)
    assert f"of report {report['id']} has no picture on S3: {second}\n" in said
    assert f"of report {report['id']}: S3 gives other bytes than were stored: {first}\n" in said
    assert sql(s3_app, "SELECT count(*) FROM images") == [(2,)]


def test_an_s3_that_is_away_compares_nothing(s3: S3Double, s3_app: Flask, image: dict[str, Any]) -> None:
    s3.fail_always("500", "list", "head", "delete")
    for arguments in (("images", "verify"), ("images", "thumbnails")):
        code, said = run_cli(s3_app, *arguments)
        assert (code, "Error: The image store failed: " in said) == (1, True)


def test_a_report_takes_images_of_all_formats_and_shows_them(s3_app: Flask, on_s3: Client) -> None:
    contents = [picture(format) for format in ("JPEG", "PNG", "WEBP", "GIF")]
    form = {"patient_id": make_patient(on_s3)["id"], "images": files(*contents)}
    shown = [Client(s3_app).get(image["image_url"]) for image in on_s3.post("/reports", data=form).json["images"]]
    assert [answer.mimetype for answer in shown] == ["image/jpeg", "image/png", "image/webp", "image/gif"]
    assert [answer.status_code for answer in shown] == [200] * 4
