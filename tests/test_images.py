"""The images of reports: on Cloudinary, through its real SDK, and on local disk."""

import functools
import io
import re
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from client import Client, assert_refused, run_cli, wait_until
from factories import files, make_patient, make_report, noise, picture, reported
from flask import Flask
from PIL import ExifTags, Image, PngImagePlugin
from sql import rows, snapshot, stored_files
from werkzeug.datastructures import FileStorage

from testing.cloudinary_double import CloudinaryDouble


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
    assert [text.partition(":")[0] for text in refused.json["errors"]["images"]] == ["The file scan2.png"]
    assert snapshot(app) == before


def test_the_bomb_is_small(doctor: Client) -> None:
    assert len(bomb()) < 60_000


def test_every_unfit_picture_is_named(doctor: Client) -> None:
    refused = doctor.post("/reports", **reported(make_patient(doctor)["id"], SVG, picture(), b""))
    assert [text.partition(":")[0] for text in refused.json["errors"]["images"]] == [
        "The file scan1.png",
        "The file scan3.png",
    ]


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


def test_nothing_is_sent_when_the_report_would_be_refused(cloud: CloudinaryDouble, clouded: Client) -> None:
    assert_refused(clouded.post("/reports", **reported(77, picture())), 422, "patient_id")
    assert_refused(clouded.post("/reports", **reported(make_patient(clouded)["id"], picture(), SVG)), 422, "images")
    assert cloud.requests == []


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
