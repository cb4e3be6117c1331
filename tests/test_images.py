"""The images of reports: on Cloudinary, through its real SDK, and on local disk."""

import functools
import io
import json
import random
import re
import struct
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from client import Client, assert_refused, form, run_cli
from factories import files, make_patient, make_report, picture
from flask import Flask
from PIL import ExifTags, Image, PngImagePlugin
from sql import snapshot, stored_files
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError
from werkzeug.datastructures import FileStorage

from clinic import images as media
from server import pictures
from testing.cloudinary_double import CloudinaryDouble, How


@pytest.fixture
def clouded(cloud_app: Flask, doctor: Client) -> Client:
    """The doctor at a clinic that keeps its images on Cloudinary."""
    return Client(cloud_app, doctor.token, doctor.user)


def rows(app: Flask, sql: str) -> list[tuple[Any, ...]]:
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(sql)]


def reported(patient_id: int, *contents: bytes) -> dict[str, Any]:
    return form({"patient_id": str(patient_id), "images": files(*contents)})


@functools.cache
def photo() -> bytes:
    """A phone's JPEG: taken sideways, at a place, with a comment."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "Amina Wanjiru"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "S"
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "olive").save(file, "JPEG", exif=exif, comment=b"HIV ward")
    return file.getvalue()


@functools.cache
def noise(megabytes: int) -> bytes:
    """A PNG of about this size, since noise cannot be compressed."""
    side = int((megabytes * 1_000_000) ** 0.5)
    file = io.BytesIO()
    Image.effect_noise((side, side), 100).save(file, "PNG", compress_level=1)
    return file.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@functools.cache
def bomb() -> bytes:
    """A whole, valid PNG of 20,000 x 20,000 black and white pixels in some fifty kilobytes."""
    lines = zlib.compress(b"\0" * (20_000 * 2_501), 9)
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", lines) + png_chunk(b"IEND", b"")


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


# --- Hostile files, refused before anything is sent ---

HOSTILE: dict[str, Callable[[], bytes]] = {
    "a truncated PNG": lambda: picture()[:-20],
    "a PNG cut in its header": lambda: picture()[:20],
    "a truncated JPEG": lambda: picture("JPEG")[:-30],
    "a JPEG cut short, with an end mark": lambda: picture("JPEG")[:-30] + b"\xff\xd9",
    "an SVG": lambda: SVG,
    "an empty file": lambda: b"",
    "a text": lambda: b"This is no picture.",
    "a PDF": lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "a page": lambda: b"<!doctype html><script>alert(1)</script>",
    "a bomb": bomb,
    "a PNG's signature alone": lambda: b"\x89PNG\r\n\x1a\n",
    "a PNG with a wrong checksum": lambda: picture().replace(b"IDAT", b"IDAX"),
    "an icon": lambda: picture("ICO", (16, 16)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_fit_picture_is_refused_with_its_file_named(
    app: Flask, doctor: Client, content: Callable[[], bytes]
) -> None:
    patient, before = make_patient(doctor), None
    before = snapshot(app)
    refused = doctor.post("/reports", **reported(patient["id"], picture(), content(), picture()))
    assert_refused(refused, 422, "images")
    assert [text.partition(":")[0] for text in refused.json["errors"]["images"]] == ["scan2.png"]
    assert snapshot(app) == before


def test_the_bomb_is_small(doctor: Client) -> None:
    assert len(bomb()) < 60_000


def test_every_unfit_picture_is_named(doctor: Client) -> None:
    refused = doctor.post("/reports", **reported(make_patient(doctor)["id"], SVG, picture(), b""))
    assert [text.partition(":")[0] for text in refused.json["errors"]["images"]] == ["scan1.png", "scan3.png"]


def test_an_unfit_picture_is_refused_in_a_patch_and_the_report_stays(app: Flask, doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"])
    before = snapshot(app)
    sent = {"images": files(picture(), SVG), "replace_images": "true", "diagnosis": "New"}
    assert_refused(doctor.patch(f"/reports/{report['id']}", data=sent), 422, "images")
    assert snapshot(app) == before


def test_fifty_images_are_taken_and_fifty_one_are_not(app: Flask, doctor: Client) -> None:
    patient = make_patient(doctor)
    assert len(make_report(doctor, patient["id"], *[picture()] * 50)["images"]) == 50
    before = snapshot(app)
    refused = doctor.post("/reports", **reported(patient["id"], *[picture()] * 51))
    assert_refused(refused, 422, "images")
    assert snapshot(app) == before


def test_a_file_of_twenty_megabytes_is_taken_and_a_larger_one_is_not(app: Flask, doctor: Client) -> None:
    patient, before = make_patient(doctor), None
    before = snapshot(app)
    limit = 20 * 1024 * 1024
    assert_refused(doctor.post("/reports", **reported(patient["id"], picture(), b"\0" * (limit + 1))), 413)
    assert snapshot(app) == before
    padded = picture() + b"\0" * (limit - len(picture()))  # what lies behind a picture's end is cut
    assert make_report(doctor, patient["id"], padded)["images"][0]["bytes"] <= len(picture())


def test_a_file_name_is_not_trusted(app: Flask, doctor: Client) -> None:
    name = "../../../../tmp/%00évil\"'; DROP TABLE images;.png"
    sent = {"patient_id": str(make_patient(doctor)["id"]), "images": [FileStorage(io.BytesIO(picture()), name)]}
    response = doctor.post("/reports", data=sent)
    assert response.status_code == 201, response.json
    assert "vil" not in response.text
    assert [re.fullmatch(r"[0-9a-f]{40}\.png", path.name) is not None for path in stored_files(app)] == [True]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "png"), ("BMP", "png")],
)
def test_a_picture_is_kept_as_it_is_unless_browsers_do_not_show_it(
    app: Flask, doctor: Client, sent: str, kept: str
) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], picture(sent))
    assert [image["format"] for image in report["images"]] == [kept]
    shown = Client(app).get(report["images"][0]["image_url"])
    assert shown.mimetype == f"image/{kept}"
    with Image.open(io.BytesIO(shown.data)) as image, Image.open(io.BytesIO(picture(sent))) as original:
        assert image.convert("RGB").tobytes() == original.convert("RGB").tobytes()


# --- What is stored ---


def test_exif_is_gone_from_what_is_stored_but_the_photo_stays_upright(cloud: CloudinaryDouble, clouded: Client) -> None:
    make_report(clouded, make_patient(clouded)["id"], photo())
    [stored] = cloud.stored.values()
    with Image.open(io.BytesIO(stored.content)) as image, Image.open(io.BytesIO(photo())) as original:
        assert dict(image.getexif()) == {ExifTags.Base.Orientation: 6}
        assert original.getexif()[ExifTags.Base.Artist] == "Amina Wanjiru"
        assert image.tobytes() == original.tobytes()
    assert b"Amina" in photo()
    assert b"Amina" not in stored.content
    assert b"HIV" not in stored.content


def test_the_texts_within_a_png_are_gone_from_what_is_stored(app: Flask, doctor: Client) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Patient", "Amina Wanjiru")
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG", pnginfo=texts)
    assert b"Amina" in file.getvalue()
    make_report(doctor, make_patient(doctor)["id"], file.getvalue())
    assert b"Amina" not in stored_files(app)[0].read_bytes()


def test_the_saved_url_is_cloudinarys_and_delivers_the_picture(
    app: Flask, cloud: CloudinaryDouble, clouded: Client
) -> None:
    report = make_report(clouded, make_patient(clouded)["id"])
    [(saved, public_id)] = rows(app, "SELECT image_url, public_id FROM images")
    assert report["images"][0]["image_url"] == saved
    assert saved.startswith(f"{cloud.url}/{cloud.cloud_name}/image/authenticated/s--")
    with urllib.request.urlopen(saved) as delivered:
        assert delivered.read() == cloud.stored[public_id].content
    assert clouded.get(f"/reports/{report['id']}").json["images"][0]["image_url"] == saved


def test_an_image_on_cloudinary_cannot_be_had_without_its_signature(cloud: CloudinaryDouble, clouded: Client) -> None:
    report = make_report(clouded, make_patient(clouded)["id"])
    url = report["images"][0]["image_url"]
    [stored] = cloud.stored.values()
    assert stored.type == "authenticated"
    for guess in (
        re.sub(r"s--[\w-]+--/", "", url),
        re.sub(r"s--[\w-]+--", "s--aaaaaaaa--", url),
        re.sub(r"/authenticated/s--[\w-]+--/", "/upload/", url),
    ):
        assert guess != url
        with pytest.raises(urllib.error.HTTPError, match=r"HTTP Error 40[14]") as refusal:
            urllib.request.urlopen(guess)
        refusal.value.close()


def test_an_image_has_a_name_that_cannot_be_guessed_and_tells_nothing(cloud: CloudinaryDouble, clouded: Client) -> None:
    patient = make_patient(clouded)
    for _ in range(2):
        make_report(clouded, patient["id"], picture(), picture())
    assert len(cloud.stored) == 4
    for public_id in cloud.stored:
        assert re.fullmatch(r"[0-9a-f]{40}", public_id)
    for call in cloud.requests:
        assert "scan" not in str(call.params)


def test_what_is_known_of_an_image_is_what_was_stored(app: Flask, cloud: CloudinaryDouble, clouded: Client) -> None:
    make_report(clouded, make_patient(clouded)["id"], picture("JPEG", (40, 30)))
    [(public_id, form, width, height, size)] = rows(app, "SELECT public_id, format, width, height, bytes FROM images")
    stored = cloud.stored[public_id]
    assert (form, width, height, size) == ("jpeg", 40, 30, len(stored.content))


# --- Sending ---


def test_the_eight_images_of_a_report_are_sent_side_by_side(cloud: CloudinaryDouble, clouded: Client) -> None:
    patient = make_patient(clouded)
    cloud.delay = 0.8  # long enough for eight threads to begin on a busy machine
    report = make_report(clouded, patient["id"], *[picture(size=(n, n)) for n in range(1, 9)])
    assert [image["width"] for image in report["images"]] == list(range(1, 9))
    assert cloud.in_flight_peak == 8


def test_the_images_of_a_report_stay_in_the_order_in_which_they_were_sent(
    cloud: CloudinaryDouble, clouded: Client
) -> None:
    report = make_report(clouded, make_patient(clouded)["id"], *[picture(size=(n, n)) for n in range(1, 21)])
    for shown in (report, clouded.get(f"/reports/{report['id']}").json, clouded.get("/reports").json[0]):
        assert [image["width"] for image in shown["images"]] == list(range(1, 21))


def test_at_most_twelve_megabytes_of_images_are_under_way(cloud: CloudinaryDouble, clouded: Client) -> None:
    patient = make_patient(clouded)
    cloud.delay = 0.1
    make_report(clouded, patient["id"], *[noise(5)] * 5)
    assert cloud.in_flight_peak == 2
    assert cloud.in_flight_bytes_peak <= 12 * 1024 * 1024


def test_two_reports_at_once_share_the_twelve_megabytes(cloud: CloudinaryDouble, clouded: Client) -> None:
    patient = make_patient(clouded)
    cloud.delay = 0.1
    with ThreadPoolExecutor(2) as people:
        sent = [
            people.submit(make_report, Client(clouded.app, clouded.token), patient["id"], *[noise(5)] * 2)
            for _ in range(2)
        ]
        assert all(one.result()["id"] for one in sent)
    assert cloud.in_flight_bytes_peak <= 12 * 1024 * 1024


def test_no_database_connection_is_held_while_images_are_sent(cloud: CloudinaryDouble, clouded: Client) -> None:
    patient = make_patient(clouded)
    with clouded.app.app_context():
        pool = clouded.app.extensions["sqlalchemy"].engine.pool
    cloud.delay = 0.5
    with ThreadPoolExecutor(1) as person:
        sent = person.submit(make_report, clouded, patient["id"], picture(), picture())
        wait_until(lambda: len(cloud.requests) == 2)
        held = pool.checkedout()
        assert not sent.done()
        assert sent.result()["id"]
    assert held == 0


def test_others_write_while_images_are_sent(cloud: CloudinaryDouble, clouded: Client) -> None:
    patient = make_patient(clouded)
    cloud.delay = 0.5
    with ThreadPoolExecutor(1) as person:
        sent = person.submit(make_report, clouded, patient["id"])
        wait_until(lambda: len(cloud.requests) == 1)
        changed = Client(clouded.app, clouded.token).patch(f"/patient/{patient['id']}", {"diagnosis": "Malaria"})
        assert not sent.done()
        assert sent.result()["id"]
    assert changed.status_code == 200


def wait_until(happened: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_nothing_is_sent_when_the_report_would_be_refused(cloud: CloudinaryDouble, clouded: Client) -> None:
    assert_refused(clouded.post("/reports", **reported(77, picture())), 422, "patient_id")
    assert_refused(clouded.post("/reports", **reported(make_patient(clouded)["id"], picture(), SVG)), 422, "images")
    assert cloud.requests == []


# --- Failures ---


def answer(url: Any) -> bytes:
    return json.dumps({"secure_url": url, "version": 1}).encode()


ODD_ANSWERS: dict[str, bytes] = {
    "no URL": answer(None),
    "no object": b"[]",
    "no JSON": b"<html>",
    "no UTF-8": b'{"secure_url": "https://\xff"}',
    "brackets 100,000 deep": b"[" * 100_000,
    "a number of 6,000 digits": b'{"version": %s}' % (b"9" * 6_000),
    "an error that is a text": b'{"error": "sorry"}',
    "an error that is an object": b'{"error": {"message": {"code": 7}}}',
    "an error of 3 MB": json.dumps({"error": {"message": "a" * 3_000_000}}).encode(),
    "a number for a URL": answer(7),
    "a list for a URL": answer(["https://res.cloudinary.com/a.png"]),
    "a URL of another kind": answer("javascript:alert(1)"),
    "a URL with NUL": answer("https://res.cloudinary.com/a\0.png"),
    "a URL with a lone surrogate": answer("https://res.cloudinary.com/a\ud800.png"),
    "a URL with a newline": answer("https://res.cloudinary.com/a.png\n"),
    "a URL with a blank": answer("https://res.cloudinary.com/a b.png"),
    "a URL with an accent": answer("https://res.cloudinary.com/é.png"),
    "a URL of 3 MB": answer("https://res.cloudinary.com/" + "a" * 3_000_000),
    "a URL and nothing else": answer("https://"),
}


WAYS_TO_FAIL: dict[str, How] = {
    "an error": "500",
    "a cut": "drop",
    "a cut afterwards": "drop_after_store",
    **ODD_ANSWERS,
}


@pytest.mark.parametrize("how", WAYS_TO_FAIL.values(), ids=WAYS_TO_FAIL)
def test_when_the_third_of_five_images_fails_none_stays(
    app: Flask, cloud: CloudinaryDouble, clouded: Client, how: How
) -> None:
    patient = make_patient(clouded)
    before = snapshot(app)
    cloud.fail(3, how)
    assert_refused(clouded.post("/reports", **reported(patient["id"], *[picture()] * 5)), 502)
    assert cloud.stored == {}
    assert snapshot(app) == before
    assert before["uploads"] == []


@pytest.mark.parametrize("how", ["500", "drop", "drop_after_store"])
def test_when_an_added_image_fails_the_report_keeps_its_old_ones(
    app: Flask, cloud: CloudinaryDouble, clouded: Client, how: How
) -> None:
    report = make_report(clouded, make_patient(clouded)["id"])
    before, kept = snapshot(app), dict(cloud.stored)
    cloud.fail(2, how)
    sent = {"images": files(*[picture()] * 3), "replace_images": "true", "diagnosis": "New"}
    assert_refused(clouded.patch(f"/reports/{report['id']}", data=sent), 502)
    assert cloud.stored == kept
    assert snapshot(app) == before


def test_what_could_not_be_taken_back_is_swept_by_purge(app: Flask, cloud: CloudinaryDouble, clouded: Client) -> None:
    patient = make_patient(clouded)
    cloud.fail(2, "500")
    cloud.fail(1, "drop", action="destroy")
    assert_refused(clouded.post("/reports", **reported(patient["id"], *[picture()] * 3)), 502)
    assert cloud.stored
    assert {public_id for (public_id,) in rows(app, "SELECT public_id FROM uploads")} >= set(cloud.stored)

    result = clouded.app.test_cli_runner().invoke(args=["purge"])
    assert result.exit_code == 0, result.output
    assert cloud.stored == {}
    assert rows(app, "SELECT * FROM uploads") == []


def test_a_purge_spares_the_images_of_reports(app: Flask, cloud: CloudinaryDouble, clouded: Client) -> None:
    make_report(clouded, make_patient(clouded)["id"])
    assert clouded.app.test_cli_runner().invoke(args=["purge"]).exit_code == 0
    assert len(cloud.stored) == 1


def test_a_report_can_be_filed_again_after_the_store_failed(cloud: CloudinaryDouble, clouded: Client) -> None:
    patient = make_patient(clouded)
    cloud.fail(1, "500")
    assert_refused(clouded.post("/reports", **reported(patient["id"], picture())), 502)
    assert make_report(clouded, patient["id"])["id"]


def test_a_502_tells_nothing_of_the_store(cloud: CloudinaryDouble, clouded: Client) -> None:
    patient = make_patient(clouded)
    cloud.fail(1, "500")
    refused = clouded.post("/reports", **reported(patient["id"], picture()))
    for secret in (cloud.api_key, cloud.api_secret, cloud.url, "Cloudinary", "Internal"):
        assert secret not in refused.text


@pytest.mark.parametrize("said", ODD_ANSWERS.values(), ids=ODD_ANSWERS)
def test_an_odd_answer_of_the_store_is_a_short_line_in_the_log(
    cloud: CloudinaryDouble, clouded: Client, caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    patient = make_patient(clouded)
    cloud.fail(1, said)
    assert_refused(clouded.post("/reports", **reported(patient["id"], picture())), 502)
    [record] = [record for record in caplog.records if record.name == "hosi.media" and record.levelname == "ERROR"]
    assert (len(record.getMessage()) < 1_000, record.exc_info) == (True, None)


def test_a_patient_archived_meanwhile_gets_no_report_and_no_image_stays(
    app: Flask, admin: Client, cloud: CloudinaryDouble, clouded: Client
) -> None:
    patient = make_patient(clouded)
    cloud.delay = 0.5
    with ThreadPoolExecutor(1) as person:
        sent = person.submit(clouded.post, "/reports", **reported(patient["id"], picture()))
        wait_until(lambda: len(cloud.requests) == 1)
        assert admin.delete(f"/patient/{patient['id']}").status_code == 200
        assert_refused(sent.result(), 422, "patient_id")
    assert cloud.stored == {}
    assert rows(app, "SELECT id FROM images") == rows(app, "SELECT * FROM uploads") == []


def test_a_commit_that_only_looked_failed_loses_no_image(app: Flask, cloud: CloudinaryDouble, clouded: Client) -> None:
    """The database has committed, but its answer is lost on the way."""
    patient = make_patient(clouded)
    with clouded.app.app_context():
        engine = clouded.app.extensions["sqlalchemy"].engine
    lost: list[Connection] = []

    def lose_the_answer(connection: Connection) -> None:
        if cloud.stored and not lost:
            lost.append(connection)
            connection.connection.commit()
            raise OperationalError("COMMIT", None, Exception("the connection was cut"))

    event.listen(engine, "commit", lose_the_answer)
    try:
        assert_refused(clouded.post("/reports", **reported(patient["id"], picture())), 503)
    finally:
        event.remove(engine, "commit", lose_the_answer)
    [(public_id,)] = rows(app, "SELECT public_id FROM images")
    assert set(cloud.stored) == {public_id}
    assert len(clouded.get("/reports").json) == 1


def test_a_disk_that_cannot_be_written_is_a_502(app: Flask, doctor: Client) -> None:
    patient = make_patient(doctor)
    before = snapshot(app)
    folder = app.config["INSTANCE_PATH"] / "images"
    folder.write_text("a file where a folder should be")
    try:
        refused = doctor.post("/reports", **reported(patient["id"], picture()))
    finally:
        folder.unlink()
    assert_refused(refused, 502)
    assert str(app.config["INSTANCE_PATH"]) not in refused.text
    assert {**snapshot(app), "uploads": []} == before  # what could not be taken back is left to the sweep


# --- Replacing and archiving ---


def test_a_clinic_that_goes_to_cloudinary_keeps_its_local_images_and_purges_each_where_it_is(
    app: Flask, cloud: CloudinaryDouble, clouded: Client, doctor: Client, anonymous: Client
) -> None:
    here = make_report(doctor, make_patient(doctor)["id"])
    there = make_report(clouded, here["patient_id"])
    for reader in (doctor, clouded):
        local, remote = (report["images"][0]["image_url"] for report in reader.get("/reports").json)
        assert Client(reader.app).get(local.partition("localhost")[2]).mimetype == "image/png"
        assert remote == there["images"][0]["image_url"]
        assert urllib.request.urlopen(remote).status == 200
    for report in (here, there):
        doctor.delete(f"/reports/{report['id']}")
    code, said = run_cli(app, "purge", "--older-than", "0h")
    assert code == 1
    assert "credentials are not set" in said
    assert (len(stored_files(app)), len(cloud.stored)) == (0, 1)
    assert "1 images destroyed" in run_cli(clouded.app, "purge")[1]
    assert (cloud.stored, rows(app, "SELECT * FROM uploads")) == ({}, [])


def test_replaced_images_are_archived_not_lost(app: Flask, cloud: CloudinaryDouble, clouded: Client) -> None:
    report = make_report(clouded, make_patient(clouded)["id"], picture(), picture())
    replaced = clouded.patch(f"/reports/{report['id']}", data={"images": files(picture()), "replace_images": "true"})
    assert [image["id"] for image in replaced.json["images"]] == [3]
    assert len(cloud.stored) == 3
    assert rows(app, "SELECT id FROM images WHERE deleted_at IS NOT NULL ORDER BY id") == [(1,), (2,)]


def test_the_images_of_an_archived_report_stay_in_the_store(cloud: CloudinaryDouble, clouded: Client) -> None:
    report = make_report(clouded, make_patient(clouded)["id"])
    clouded.delete(f"/reports/{report['id']}")
    assert len(cloud.stored) == 1


# --- Links to local images ---


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
        monkeypatch.setattr(media.time, "time", lambda clock=clock: clock)
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


def test_a_tiff_whose_png_is_over_twenty_megabytes_is_refused(app: Flask, doctor: Client) -> None:
    noise = Image.frombytes("RGB", (3000, 2500), random.Random(1).randbytes(3000 * 2500 * 3))
    file = io.BytesIO()
    noise.save(file, "TIFF", compression="jpeg", quality=50)
    assert len(file.getvalue()) < 20 << 20
    patient, before = make_patient(doctor), snapshot(app)
    refused = doctor.post("/reports", data={"patient_id": patient["id"], "images": files(file.getvalue())})
    assert_refused(refused, 422, "images")
    assert "as a PNG it is larger than 20 MB" in refused.json["msg"]
    assert snapshot(app)["reports"] == before["reports"]
    assert stored_files(app) == []
