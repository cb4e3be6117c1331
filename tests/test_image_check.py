"""`flask images verify` finds images without a file in the store, and files without an image."""

from typing import Any

import pytest
from client import Client, run_cli
from factories import files, make_patient, make_report, picture
from flask import Flask
from sql import sql, stored_files

from testing.cloudinary_double import CloudinaryDouble

WHOLE = "Every image has its picture, and every picture its image.\n"


def test_a_clinic_without_images_is_whole(app: Flask) -> None:
    exit_code, said = run_cli(app, "images", "verify")
    assert exit_code == 0
    assert said.endswith(WHOLE)


def test_archived_and_replaced_images_have_their_pictures(app: Flask, admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    replaced, archived = make_report(doctor, patient, picture(), picture("JPEG")), make_report(doctor, patient)
    change = {"images": files(picture("GIF")), "replace_images": "true"}
    assert doctor.patch(f"/reports/{replaced['id']}", data=change).status_code == 200
    admin.delete(f"/reports/{archived['id']}")
    assert run_cli(app, "images", "verify")[1].endswith(WHOLE)


def test_a_file_that_is_missing_and_a_file_too_many_are_named(app: Flask, doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], picture(), picture("JPEG"))
    gone, kept = sorted(stored_files(app))
    gone.unlink()
    stray = kept.parent / f"{'f' * 40}.png"
    stray.write_bytes(picture())
    (kept.parent / f"{'e' * 40}.part").write_bytes(b"half of an upload")
    exit_code, said = run_cli(app, "images", "verify")
    [(image_id,)] = sql(app, "SELECT id FROM images WHERE public_id = :public_id", public_id=gone.stem)
    assert exit_code == 1
    assert f"image {image_id} of report {report['id']} has no picture on the local disk: {gone.stem}\n" in said
    assert f"a picture on the local disk belongs to no image: {stray.stem}\n" in said
    assert "Error: 2 found." in said


def test_an_upload_that_is_under_way_is_not_accused(app: Flask, doctor: Client) -> None:
    make_report(doctor, make_patient(doctor)["id"])
    [path] = stored_files(app)
    sent = path.with_name(f"{'a' * 40}.png")
    sent.write_bytes(picture())
    insert = "INSERT INTO uploads (public_id, store, started_at) SELECT :id, 'the local disk', created_at FROM images"
    sql(app, insert, id=sent.stem)
    assert run_cli(app, "images", "verify")[0] == 0


@pytest.mark.parametrize("page_size", [500, 1])
def test_pictures_on_cloudinary_are_compared_too(
    app: Flask, cloud_app: Flask, cloud: CloudinaryDouble, doctor: Client, page_size: int
) -> None:
    cloud.page_size = page_size
    make_report(doctor, make_patient(doctor)["id"])
    make_report(Client(cloud_app, doctor.token), 1, picture(), picture("JPEG"), picture("GIF"))
    assert run_cli(cloud_app, "images", "verify")[0] == 0
    gone, kept, _ = sorted(cloud.stored)
    cloud.stored["stray"] = cloud.stored[kept]
    del cloud.stored[gone]
    exit_code, said = run_cli(cloud_app, "images", "verify")
    assert exit_code == 1
    assert f"has no picture on Cloudinary: {gone}\n" in said
    assert "a picture on Cloudinary belongs to no image: stray\n" in said
    exit_code, said = run_cli(app, "images", "verify")  # without Cloudinary's credentials
    assert exit_code == 1
    assert said.count("cannot be looked up: set the credentials of Cloudinary") == 3


def test_a_cloudinary_that_is_away_compares_nothing(cloud_app: Flask, doctor: Client) -> None:
    make_report(Client(cloud_app, doctor.token), make_patient(doctor)["id"])
    store = cloud_app.extensions["image_stores"].cloudinary
    store._account["upload_prefix"] = "http://127.0.0.1:1"
    exit_code, said = run_cli(cloud_app, "images", "verify")
    assert exit_code == 1
    assert "Error: The image store failed: " in said


def test_an_image_that_is_erased_during_the_comparison_is_not_accused(
    cloud_app: Flask, cloud: CloudinaryDouble, doctor: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_report(Client(cloud_app, doctor.token), make_patient(doctor)["id"])
    answer = cloud.list_page

    def erase_then_answer(path: str, authorization: str) -> tuple[int, dict[str, Any]]:
        sql(cloud_app, "DELETE FROM images")
        cloud.stored.clear()
        return answer(path, authorization)

    monkeypatch.setattr(cloud, "list_page", erase_then_answer)
    assert run_cli(cloud_app, "images", "verify")[0] == 0
