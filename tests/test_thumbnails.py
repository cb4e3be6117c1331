"""Thumbnails of images: their links, where they are kept, and `flask images thumbnails`."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import cloudinary.utils
import pytest
from client import Client, assert_refused, at_once, run_cli, wait_until
from factories import MakeApp, files, make_patient, make_report, picture
from flask import Flask
from PIL import ExifTags, Image
from sql import sql, stored_files

from clinic.stores.store import StoredPicture
from testing.cloudinary_double import CloudinaryDouble

LARGE = picture("PNG", (1300, 900))
ROOT = Path(__file__).parent.parent


def thumbnail_files(app: Flask) -> list[Path]:
    return [path for path in stored_files(app) if path.name.endswith(".thumb.webp")]


def make_image(client: Client, content: bytes = LARGE, **fields: Any) -> dict[str, Any]:
    """The first image of a new report."""
    return dict(make_report(client, make_patient(client)["id"], content, **fields)["images"][0])


def make_old_image(client: Client, *contents: bytes) -> dict[str, Any]:
    """The first image of a report from before there were thumbnails."""
    before = set(thumbnail_files(client.app))
    report = make_report(client, make_patient(client)["id"], *(contents or (LARGE,)))
    for path in set(thumbnail_files(client.app)) - before:
        path.unlink()
    return dict(report["images"][0])


def make_missing(app: Flask) -> None:
    """Runs `flask images thumbnails`; it must succeed."""
    code, said = run_cli(app, "images", "thumbnails")
    assert (code, said.endswith("Every image on the local disk has its thumbnail.\n")) == (0, True), said


def size_of(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content)) as image:
        return image.size


# --- On the local disk ---


def test_an_image_has_a_link_to_its_thumbnail_wherever_it_is_shown(app: Flask, doctor: Client) -> None:
    make_report(doctor, make_patient(doctor)["id"], LARGE, picture("JPEG", (300, 1000)))
    changed = doctor.patch("/reports/1", {"diagnosis": "Sprain"}).json
    lists = [doctor.get("/reports").json, doctor.get("/reports?limit=1").json]
    for report in (changed, doctor.get("/reports/1").json, *(answer[0] for answer in lists)):
        shown = [Client(app).get(image["thumbnail_url"]) for image in report["images"]]
        assert [(answer.status_code, answer.mimetype) for answer in shown] == [(200, "image/webp")] * 2
        assert [size_of(answer.data) for answer in shown] == [(320, 222), (96, 320)]
        assert all(len(answer.data) < 5_000 for answer in shown)
    assert len(thumbnail_files(app)) == 2


def test_a_small_picture_is_its_own_thumbnail(app: Flask, doctor: Client) -> None:
    image = make_image(doctor, picture("PNG", (320, 320)))
    assert image["thumbnail_url"] == image["image_url"]
    assert thumbnail_files(app) == []


def test_a_browser_that_has_the_thumbnail_is_told_that_it_is_the_same(anonymous: Client, doctor: Client) -> None:
    image = make_image(doctor)
    first = anonymous.get(image["thumbnail_url"])
    assert first.headers["ETag"] != anonymous.get(image["image_url"]).headers["ETag"]
    assert anonymous.get(image["thumbnail_url"], headers={"If-None-Match": first.headers["ETag"]}).status_code == 304
    for header, value in (("Cache-Control", "private, no-cache"), ("Cross-Origin-Resource-Policy", "cross-origin")):
        assert first.headers[header] == value


def test_the_link_to_a_thumbnail_opens_nothing_else(anonymous: Client, doctor: Client) -> None:
    image = make_image(doctor)
    key, query = image["thumbnail_url"].partition("/media/")[2].split("?")
    other = image["image_url"].partition("/media/")[2].partition("?")[0]
    for wrong in (other, key.replace(".thumb", ""), key.replace("webp", "png"), key.replace(".thumb.", ".thumb.x.")):
        assert anonymous.get(f"/media/{wrong}?{query}").status_code in (403, 404)
    assert_refused(anonymous.get(f"/media/{key}"), 403)
    assert_refused(anonymous.get(f"/media/{key}?{query[:-1]}{'0' if query[-1] != '0' else '1'}"), 403)


def test_a_thumbnail_is_shown_to_those_alone_who_may_see_the_image(
    admin: Client, doctor: Client, anonymous: Client
) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], LARGE, LARGE)
    first, second = (image["thumbnail_url"] for image in report["images"])
    account = f"/user/{doctor.user['id']}"
    for change, status in (({"is_active": False}, 403), ({"is_active": True}, 200)):
        admin.patch(account, change)
        assert anonymous.get(first).status_code == status
    admin.delete(f"/reports/{report['id']}/images/{report['images'][0]['id']}")
    assert (anonymous.get(first).status_code, anonymous.get(second).status_code) == (404, 200)
    admin.delete(f"/reports/{report['id']}")
    assert_refused(anonymous.get(second), 404)
    admin.post(f"/reports/{report['id']}/restore")
    assert (anonymous.get(first).status_code, anonymous.get(second).status_code) == (404, 200)


def test_until_there_is_a_thumbnail_its_link_shows_the_picture(app: Flask, doctor: Client, anonymous: Client) -> None:
    link = make_old_image(doctor)["thumbnail_url"]
    before = anonymous.get(link)
    assert (before.status_code, before.mimetype, before.data) == (200, "image/png", LARGE)
    make_missing(app)
    after = anonymous.get(link, headers={"If-None-Match": before.headers["ETag"]})
    assert (after.status_code, after.mimetype, size_of(after.data)) == (200, "image/webp", (320, 222))


def test_a_disk_that_is_full_at_the_thumbnail_fails_no_upload(
    app: Flask, doctor: Client, anonymous: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill_the_disk(monkeypatch)
    image = make_image(doctor)
    assert anonymous.get(image["thumbnail_url"]).data == anonymous.get(image["image_url"]).data == LARGE
    assert [path.suffix for path in stored_files(app)] == [".png"]
    assert "no thumbnail was made of" in caplog.text


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk have no room for thumbnails."""
    replace = Path.replace

    def full(draft: Path, target: Path) -> Path:
        if target.name.endswith(".thumb.webp"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(draft, target)

    monkeypatch.setattr(Path, "replace", full)


def test_a_purge_erases_the_thumbnail_with_its_picture(app: Flask, doctor: Client) -> None:
    make_image(doctor)
    kept = make_report(doctor, make_patient(doctor)["id"], LARGE)
    doctor.delete("/reports/1")
    assert len(stored_files(app)) == 4
    assert run_cli(app, "purge", "--older-than", "0h")[0] == 0
    assert len(stored_files(app)) == 2
    assert run_cli(app, "images", "verify")[0] == 0
    assert size_of(Client(app).get(kept["images"][0]["thumbnail_url"]).data) == (320, 222)


def test_an_upload_that_is_taken_back_leaves_no_thumbnail(
    app: Flask, doctor: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient, replace = make_patient(doctor)["id"], Path.replace

    def fail_with_the_jpeg(draft: Path, target: Path) -> Path:
        if target.suffix == ".jpeg":
            wait_until(lambda: len(thumbnail_files(app)) == 1)
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(draft, target)

    monkeypatch.setattr(Path, "replace", fail_with_the_jpeg)
    sent = {"patient_id": str(patient), "images": files(LARGE, picture("JPEG"))}
    assert_refused(doctor.post("/reports", data=sent), 502)
    assert stored_files(app) == []


@pytest.mark.parametrize("left", [[".png"], [".png", ".thumb.0a1b2c3d.part"], [".png", ".thumb.webp"]], ids=len)
def test_what_a_crash_leaves_of_a_picture_and_its_thumbnail_is_swept(
    app: Flask, doctor: Client, left: list[str]
) -> None:
    make_image(doctor)
    kept = set(stored_files(app))
    public_id = "ab" * 20
    folder = app.config["INSTANCE_PATH"] / "images" / "ab"
    folder.mkdir(exist_ok=True)
    for ending in left:
        (folder / f"{public_id}{ending}").write_bytes(LARGE)
    insert = "INSERT INTO uploads (public_id, store, started_at) VALUES (:id, 'the local disk', '2026-01-01')"
    sql(app, insert, id=public_id)
    assert run_cli(app, "purge")[0] == 0
    assert set(stored_files(app)) == kept


def test_a_purge_deletes_old_drafts_alone(app: Flask, doctor: Client) -> None:
    make_image(doctor)
    [thumbnail] = thumbnail_files(app)
    old, new = (thumbnail.with_suffix(f".{name}.part") for name in ("old", "new"))
    for draft, age in ((old, 3700), (new, 3500)):
        draft.write_bytes(b"half")
        os.utime(draft, times=(time.time() - age,) * 2)
    assert run_cli(app, "purge")[0] == 0
    assert (old.exists(), new.exists(), thumbnail.exists()) == (False, True, True)


def test_a_comparison_accuses_a_thumbnail_only_of_an_image_that_is_gone(app: Flask, doctor: Client) -> None:
    make_image(doctor)
    assert run_cli(app, "images", "verify")[0] == 0
    [thumbnail] = thumbnail_files(app)
    stray = thumbnail.with_name(f"{'f' * 40}.thumb.webp")
    stray.write_bytes(thumbnail.read_bytes())
    exit_code, said = run_cli(app, "images", "verify")
    assert exit_code == 1
    assert f"a thumbnail on the local disk belongs to no image: {'f' * 40}\n" in said
    assert "Error: 1 found." in said


def test_a_thumbnail_does_not_stand_for_its_picture(app: Flask, doctor: Client) -> None:
    image = make_image(doctor)
    for path in set(stored_files(app)) - set(thumbnail_files(app)):
        path.unlink()
    exit_code, said = run_cli(app, "images", "verify")
    assert exit_code == 1
    assert f"image {image['id']} of report 1 has no picture on the local disk" in said
    assert "Error: 1 found." in said


# --- flask images thumbnails ---


def test_the_command_makes_what_is_missing_and_leaves_what_is_there(app: Flask, admin: Client, doctor: Client) -> None:
    make_image(doctor)
    [there] = thumbnail_files(app)
    made_at = there.stat().st_mtime_ns
    make_old_image(doctor, LARGE, picture(), picture("JPEG", (2000, 1000)))
    archived = make_old_image(doctor)
    admin.delete(f"/reports/{archived['id']}")
    make_missing(app)
    assert len(thumbnail_files(app)) == 4
    assert there.stat().st_mtime_ns == made_at
    make_missing(app)
    assert run_cli(app, "images", "verify")[0] == 0


def test_the_command_names_pictures_that_cannot_be_read_and_goes_on(app: Flask, doctor: Client) -> None:
    broken, gone, good = (make_old_image(doctor) for _ in range(3))
    for image, content in ((broken, LARGE[:-40]), (gone, None)):
        key = image["image_url"].partition("/media/")[2].partition("?")[0]
        [path] = [path for path in stored_files(app) if path.name == key]
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
    exit_code, said = run_cli(app, "images", "thumbnails")
    assert exit_code == 1
    assert f"image {broken['id']} of report 1 has no thumbnail: This picture is damaged" in said
    assert f"image {gone['id']} of report 2 has no picture on the local disk" in said
    assert "Error: 2 found." in said
    [thumbnail] = thumbnail_files(app)
    assert thumbnail.name.partition(".")[0] in good["image_url"]


def test_the_command_stops_when_the_disk_is_full(app: Flask, doctor: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old_image(doctor, LARGE, LARGE)
    with monkeypatch.context() as patched:
        fill_the_disk(patched)
        exit_code, said = run_cli(app, "images", "thumbnails")
    assert exit_code == 1
    assert "Error: The image store failed: [Errno 28]" in said
    assert len(stored_files(app)) == 2, "no draft is left"
    make_missing(app)


def test_a_picture_that_is_erased_while_its_thumbnail_is_made_leaves_none(
    app: Flask, doctor: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, replace = make_old_image(doctor), Path.replace

    def erase_before(draft: Path, target: Path) -> Path:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", replace)
            [picture_file] = [path for path in stored_files(app) if path.suffix == ".png"]
            sql(app, "DELETE FROM images")
            picture_file.unlink()
        return replace(draft, target)

    monkeypatch.setattr(Path, "replace", erase_before)
    assert image["width"] == 1300
    make_missing(app)
    assert stored_files(app) == []


def test_a_thumbnail_that_is_made_while_its_picture_is_erased_is_erased_too(
    app: Flask, doctor: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old_image(doctor)
    doctor.delete("/reports/1")
    unlink = Path.unlink

    def unlink_after_a_thumbnail(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".png":
            path.with_suffix(".thumb.webp").write_bytes(b"a thumbnail")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_after_a_thumbnail)
    assert run_cli(app, "purge", "--older-than", "0h")[0] == 0
    assert stored_files(app) == []


def test_two_commands_at_once_do_no_harm(app: Flask, doctor: Client) -> None:
    make_old_image(doctor, *[LARGE] * 6)
    store = app.extensions["image_stores"].local
    pictures = [StoredPicture(path.name, len(LARGE), "") for path in stored_files(app)]
    at_once(*[lambda: [store.add_thumbnail(one) for one in pictures]] * 2)
    assert len(thumbnail_files(app)) == 6
    assert len(stored_files(app)) == 12


def run_apart(app: Flask) -> "subprocess.Popen[bytes]":
    settings = {
        "FLASK_ENV": "development",
        "DATABASE_URL": app.config["DATABASE_URL"],
        "INSTANCE_PATH": str(app.config["INSTANCE_PATH"]),
    }
    command = [sys.executable, "-m", "flask", "images", "thumbnails"]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, stderr=subprocess.DEVNULL)


def test_a_command_that_was_killed_goes_on_where_it_was(app: Flask, doctor: Client) -> None:
    make_old_image(doctor, *[LARGE] * 4)
    [(_, key)] = sql(app, "SELECT id, image_url FROM images WHERE id = 3")
    [third] = [path for path in stored_files(app) if path.name == key]
    third.unlink()
    os.mkfifo(third)  # whoever reads it waits
    killed = run_apart(app)
    wait_until(lambda: len(thumbnail_files(app)) == 2, seconds=60)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = {path: path.stat().st_mtime_ns for path in thumbnail_files(app)}
    assert [size_of(path.read_bytes()) for path in done] == [(320, 222)] * 2
    third.unlink()
    third.write_bytes(LARGE)
    make_missing(app)
    assert len(thumbnail_files(app)) == 4
    assert {path: path.stat().st_mtime_ns for path in done} == done


# --- On Cloudinary ---


def test_cloudinary_makes_the_thumbnail_by_a_signed_transformation(cloud: CloudinaryDouble, clouded: Client) -> None:
    image = make_image(clouded)
    [(public_id, stored)] = cloud.stored.items()
    by_the_sdk, _ = cloudinary.utils.cloudinary_url(
        public_id,
        cloud_name=cloud.cloud_name,
        api_secret=cloud.api_secret,
        type="authenticated",
        sign_url=True,
        secure=True,
        version=stored.version,
        format="png",
        transformation={"crop": "limit", "width": 320, "height": 320},
    )
    assert image["thumbnail_url"] == by_the_sdk.replace("https://res.cloudinary.com", cloud.url)
    with urllib.request.urlopen(image["thumbnail_url"]) as delivered:
        assert size_of(delivered.read()) == (320, 222)
    for shown in (clouded.get("/reports/1").json, clouded.get("/reports").json[0]):
        assert shown["images"][0] == image


def test_a_photo_on_its_side_has_an_upright_thumbnail_on_cloudinary(cloud: CloudinaryDouble, clouded: Client) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (1300, 900)).save(file, "JPEG", exif=exif)
    with urllib.request.urlopen(make_image(clouded, file.getvalue())["thumbnail_url"]) as delivered:
        assert size_of(delivered.read()) == (222, 320)


def test_no_other_transformation_can_be_asked_for(cloud: CloudinaryDouble, clouded: Client) -> None:
    url = make_image(clouded)["thumbnail_url"]
    for other in (url.replace("w_320", "w_900"), url.replace("c_limit,h_320,w_320/", "")):
        assert other != url
        with pytest.raises(urllib.error.HTTPError, match="HTTP Error 401") as refusal:
            urllib.request.urlopen(other)
        refusal.value.close()


def test_an_image_in_an_account_whose_secret_is_not_set_is_shown_itself(
    app: Flask, doctor: Client, clouded: Client, make_app: MakeApp, cloud: CloudinaryDouble
) -> None:
    image = make_image(clouded)
    other = make_app(
        CLOUDINARY_CLOUD_NAME="another",
        CLOUDINARY_API_KEY=cloud.api_key,
        CLOUDINARY_API_SECRET="another",
        CLOUDINARY_UPLOAD_PREFIX=cloud.url,
        JWT_SECRET_KEY=app.config["JWT_SECRET_KEY"],
    )
    for client in (doctor, Client(other, doctor.token)):
        [shown] = client.get("/reports/1").json["images"]
        assert shown["thumbnail_url"] == shown["image_url"] == image["image_url"]


@pytest.mark.parametrize(
    "host", ["https://res.cloudinary.com/clinic", "https://clinic-res.cloudinary.com", "http://127.0.0.1:80/clinic"]
)
def test_the_thumbnail_comes_from_the_host_of_the_image(clouded: Client, host: str) -> None:
    store = clouded.app.extensions["image_stores"].cloudinary
    url = store.thumbnail_url(f"{host}/image/authenticated/s--1a2b3c4d--/v12/{'a' * 40}.png")
    assert url.startswith(f"{host}/image/authenticated/s--")
    assert url.endswith(f"--/c_limit,h_320,w_320/v12/{'a' * 40}.png")
    elsewhere = f"{host.replace('clinic', 'another')}/image/authenticated/s--1a2b3c4d--/v12/{'a' * 40}.png"
    assert store.thumbnail_url(elsewhere) == elsewhere


def test_the_command_leaves_cloudinary_alone(cloud: CloudinaryDouble, clouded: Client) -> None:
    make_image(clouded)
    calls = len(cloud.requests)
    make_missing(clouded.app)
    assert len(cloud.requests) == calls
