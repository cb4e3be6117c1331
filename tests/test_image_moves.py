"""`flask images move`: from any store to any other, and nothing is lost wherever it is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from client import Client, run_cli, verify, wait_until
from factories import AUDIT_KEY, MakeApp, files, make_patient, make_report, picture
from flask import Flask
from sql import count, held_up, rows, sql, stored_files
from sqlalchemy import text

from testing.cloudinary_double import CloudinaryDouble
from testing.s3_double import How, S3Double

ROOT = Path(__file__).parent.parent
CONTENTS = [picture("PNG", (1300, 900), colour) for colour in ("navy", "red", "green")]
STORES = ("local", "cloudinary", "s3")
WHOLE = "Every image has its picture, and every picture its image.\n"


@pytest.fixture
def clinic(app: Flask, make_app: MakeApp, s3: S3Double, cloud: CloudinaryDouble) -> Callable[[str], Flask]:
    """The clinic with all three stores, and new images in one of them."""

    def keeping(store: str) -> Flask:
        return make_app(
            **s3.settings,
            CLOUDINARY_CLOUD_NAME=cloud.cloud_name,
            CLOUDINARY_API_KEY=cloud.api_key,
            CLOUDINARY_API_SECRET=cloud.api_secret,
            CLOUDINARY_UPLOAD_PREFIX=cloud.url,
            IMAGE_STORE=store,
            INSTANCE_PATH=app.config["INSTANCE_PATH"],
        )

    return keeping


def held(app: Flask, s3: S3Double, cloud: CloudinaryDouble) -> dict[str, int]:
    """How many pictures and thumbnails each store has."""
    return {"local": len(stored_files(app)), "cloudinary": len(cloud.stored), "s3": len(s3.stored)}


def shown(client: Client, report: int = 1) -> list[bytes]:
    """The images of a report, as a browser gets them."""
    import urllib3

    links = [image["image_url"] for image in client.get(f"/reports/{report}").json["images"]]
    return [
        urllib3.request("GET", link).data if "/media/" not in link else Client(client.app).get(link).data
        for link in links
    ]


@pytest.mark.parametrize("source", STORES)
@pytest.mark.parametrize("target", STORES)
def test_images_move_from_any_store_to_any_other(
    app: Flask,
    admin: Client,
    doctor: Client,
    clinic: Callable[[str], Flask],
    s3: S3Double,
    cloud: CloudinaryDouble,
    source: str,
    target: str,
) -> None:
    before = Client(clinic(source), doctor.token, doctor.user)
    report = make_report(before, make_patient(before)["id"], *CONTENTS)
    archived = make_report(before, 1, CONTENTS[0])
    admin.delete(f"/reports/{archived['id']}")
    etag = before.get("/reports/1").headers["ETag"]
    per_picture = {"local": 2, "cloudinary": 1, "s3": 2}
    after = clinic(target)
    code, said = run_cli(after, "images", "move", "--to", target)
    assert (code, "Note:" in said) == (0, False), said
    assert held(app, s3, cloud) == {**dict.fromkeys(STORES, 0), target: 4 * per_picture[target]}
    reader = Client(after, doctor.token, doctor.user)
    assert shown(reader) == CONTENTS
    assert reader.get("/reports/1").headers["ETag"] == etag
    assert [image["id"] for image in reader.get("/reports/1").json["images"]] == [i["id"] for i in report["images"]]
    admin.post(f"/reports/{archived['id']}/restore")
    assert shown(reader, archived["id"]) == CONTENTS[:1]
    assert count(app, "uploads") == 0
    assert run_cli(after, "images", "verify") == (0, f"comparing images\n{WHOLE}")
    verify(app)


def test_a_move_is_an_entry_in_the_images_history_without_the_url(
    admin: Client, on_s3: Client, app: Flask, s3_app: Flask
) -> None:
    make_report(on_s3, make_patient(on_s3)["id"])
    before = sql(app, "SELECT public_id FROM images")
    assert run_cli(s3_app, "images", "move", "--to", "local")[0] == 0
    after = sql(app, "SELECT public_id FROM images")
    [entry] = [e for e in admin.get("/audit").json if (e["kind"], e["action"]) == ("image", "change")]
    assert entry["changes"] == {
        "public_id": {"from": before[0][0], "to": after[0][0]},
        "image_url": {"from": None, "to": "set"},
    }
    assert entry["actor_id"] is None
    verify(app)


def test_a_note_says_where_new_images_go(s3_app: Flask, on_s3: Client) -> None:
    make_report(on_s3, make_patient(on_s3)["id"])
    code, said = run_cli(s3_app, "images", "move", "--to", "local")
    assert (code, "Note: new images still go to S3. Set IMAGE_STORE=local." in said) == (0, True)
    code, said = run_cli(s3_app, "images", "move", "--to", "local")
    assert (code, "Every image is on the local disk." in said) == (0, True)


def test_a_store_without_credentials_is_named(app: Flask, s3_app: Flask, on_s3: Client) -> None:
    make_report(on_s3, make_patient(on_s3)["id"])
    for where, to, name in ((app, "s3", "S3"), (app, "local", "S3"), (s3_app, "cloudinary", "Cloudinary")):
        code, said = run_cli(where, "images", "move", "--to", to)
        assert (code, f"{name}, whose credentials are not set" in said) == (1, True)
    assert rows(app, "SELECT * FROM uploads") == []


@pytest.mark.parametrize(("how", "why"), [("lose", "no such picture"), ("swap", "other bytes")])
def test_a_picture_that_is_lost_or_mixed_up_stays_and_is_named(
    app: Flask, s3: S3Double, s3_app: Flask, on_s3: Client, how: How, why: str
) -> None:
    make_report(on_s3, make_patient(on_s3)["id"], *CONTENTS)
    s3.fail(2, how, "get")
    code, said = run_cli(s3_app, "images", "move", "--to", "local")
    assert (code, "image 2 of report 1 stays on S3: " in said, why in said) == (1, True, True)
    assert len(s3.stored) == 2
    assert run_cli(s3_app, "images", "verify")[0] == 0
    assert run_cli(s3_app, "images", "move", "--to", "local")[0] == 0
    assert (s3.stored, shown(on_s3)) == ({}, CONTENTS)


def test_a_copy_that_arrives_wrong_is_destroyed_and_the_picture_stays(
    app: Flask, s3: S3Double, s3_app: Flask, on_s3: Client, doctor: Client
) -> None:
    make_report(doctor, make_patient(doctor)["id"], *CONTENTS[:1])
    s3.fail(1, "garble", "put")
    code, said = run_cli(s3_app, "images", "move", "--to", "s3")
    assert (code, "image 1 of report 1 stays on the local disk: S3 gives other bytes" in said) == (1, True)
    assert (s3.pictures(), count(app, "uploads"), shown(doctor)) == ([], 0, CONTENTS[:1])


def test_a_store_that_is_away_ends_the_move_after_five_failures(
    app: Flask, s3: S3Double, s3_app: Flask, doctor: Client
) -> None:
    make_report(doctor, make_patient(doctor)["id"], *CONTENTS * 3)
    s3.fail_always("500", "put")
    code, said = run_cli(s3_app, "images", "move", "--to", "s3")
    assert (code, "Run this again to go on." in said) == (1, True)
    assert s3.count("put") == 5
    assert (s3.stored, count(app, "uploads"), shown(doctor)) == ({}, 0, CONTENTS * 3)


def test_an_old_picture_that_cannot_be_destroyed_is_left_to_purge(
    app: Flask, s3: S3Double, s3_app: Flask, on_s3: Client
) -> None:
    make_report(on_s3, make_patient(on_s3)["id"], *CONTENTS)
    s3.fail_always("500", "delete")
    assert run_cli(s3_app, "images", "move", "--to", "local")[0] == 0
    assert (len(s3.pictures()), count(app, "uploads"), shown(on_s3)) == (3, 3, CONTENTS)
    s3.recover()
    assert run_cli(s3_app, "purge")[0] == 0
    assert (s3.stored, count(app, "uploads"), shown(on_s3)) == ({}, 0, CONTENTS)


def test_an_image_that_is_erased_while_it_moves_leaves_nothing(
    app: Flask, s3: S3Double, s3_app: Flask, doctor: Client
) -> None:
    make_report(doctor, make_patient(doctor)["id"], CONTENTS[0])
    doctor.delete("/reports/1")
    s3.delay = 0.5
    with ThreadPoolExecutor(1) as operator:
        moved = operator.submit(run_cli, s3_app, "images", "move", "--to", "s3")
        wait_until(lambda: s3.count("put") == 1)
        assert run_cli(app, "purge", "--older-than", "0h")[0] == 0
        assert moved.result()[0] == 0
    assert (s3.stored, stored_files(app), count(app, "images"), count(app, "uploads")) == ({}, [], 0, 0)


def test_two_moves_at_once_move_each_image_once(app: Flask, s3: S3Double, s3_app: Flask, doctor: Client) -> None:
    make_report(doctor, make_patient(doctor)["id"], *CONTENTS * 2)
    s3.delay = 0.05
    with ThreadPoolExecutor(2) as operators:
        for moved in [operators.submit(run_cli, s3_app, "images", "move", "--to", "s3") for _ in range(2)]:
            assert moved.result()[0] == 0
    assert (len(s3.pictures()), stored_files(app), count(app, "uploads")) == (6, [], 0)
    assert run_cli(s3_app, "images", "verify")[0] == 0


def test_a_report_is_changed_while_its_images_move(app: Flask, s3: S3Double, s3_app: Flask, on_s3: Client) -> None:
    make_report(on_s3, make_patient(on_s3)["id"], *CONTENTS)
    s3.delay = 0.1
    with ThreadPoolExecutor(1) as operator:
        moved = operator.submit(run_cli, s3_app, "images", "move", "--to", "local")
        wait_until(lambda: s3.count("get") == 1)
        etag = on_s3.get("/reports/1").headers["ETag"]
        changed = on_s3.patch("/reports/1", {"diagnosis": "Sprain"}, headers={"If-Match": etag})
        sent = {"images": files(CONTENTS[0]), "replace_images": "true"}
        replaced = on_s3.patch("/reports/1", data=sent)
        assert (changed.status_code, replaced.status_code) == (200, 200)
        assert moved.result()[0] == 0
    assert run_cli(s3_app, "images", "move", "--to", "local")[0] == 0
    assert (shown(on_s3), s3.stored) == (CONTENTS[:1], {})
    verify(app)


# --- Killed ---


def run_apart(app: Flask, to: str) -> "subprocess.Popen[bytes]":
    names = ("S3_ENDPOINT", "S3_BUCKET", "S3_ACCESS_KEY", "S3_SECRET_KEY", "DATABASE_URL")
    settings = {
        "FLASK_ENV": "development",
        "AUDIT_KEY": AUDIT_KEY,
        "INSTANCE_PATH": str(app.config["INSTANCE_PATH"]),
        **{name: app.config[name] for name in names},
    }
    command = [sys.executable, "-m", "flask", "images", "move", "--to", to]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, stderr=subprocess.DEVNULL)


def killed_when(app: Flask, to: str, happened: Callable[[], bool]) -> None:
    process = run_apart(app, to)
    try:
        wait_until(happened, 30)
        time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def abandon_uploads(app: Flask) -> None:
    """Let an hour pass."""
    sql(app, text("UPDATE uploads SET started_at = '2020-01-01'"))


KILLS: list[tuple[str, str, int, How]] = [  # where to; the call of S3 at which it is killed
    ("s3", "put", 3, "hang"),  # the second picture is on its way
    ("s3", "put", 3, "hang_after"),  # it is there, and not acknowledged
    ("s3", "put", 4, "hang"),  # without its thumbnail
    ("s3", "put", 4, "hang_after"),
    ("s3", "get", 2, "hang"),  # it is read back
    ("local", "get", 2, "hang"),  # before it is copied
    ("local", "get", 2, "trickle"),  # half-way
    ("local", "delete", 3, "hang"),  # the row is committed, the old picture is there
    ("local", "delete", 3, "hang_after"),
    ("local", "delete", 4, "hang"),  # its thumbnail alone is left
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database_url", "to", "action", "nth", "how"),
    # On SQLite three suffice: all is uploaded, nothing is copied yet, and the row is committed.
    [*[("postgresql", *kill) for kill in KILLS], *[("sqlite", *kill) for kill in (KILLS[3], KILLS[5], KILLS[7])]],
    indirect=["database_url"],
)
def test_a_move_that_is_killed_loses_nothing_and_goes_on(
    app: Flask, s3: S3Double, s3_app: Flask, on_s3: Client, doctor: Client, to: str, action: str, nth: int, how: How
) -> None:
    before = doctor if to == "s3" else on_s3
    make_report(before, make_patient(before)["id"], *CONTENTS)
    s3.fail(nth, how, action)
    made = s3.count(action)
    killed_when(s3_app, to, lambda: s3.count(action) == made + nth)
    s3.recover()
    check_whole_and_finish(app, s3, s3_app, on_s3, to)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["s3", "local"])
def test_a_move_that_is_killed_in_its_transaction_loses_nothing_and_goes_on(
    app: Flask, s3: S3Double, s3_app: Flask, on_s3: Client, doctor: Client, to: str
) -> None:
    before = doctor if to == "s3" else on_s3
    make_report(before, make_patient(before)["id"], *CONTENTS)
    s3.delay = 0.4
    process = run_apart(s3_app, to)
    wait_until(lambda: s3.count("put" if to == "s3" else "get") == (3 if to == "s3" else 2), 30)  # the second picture
    with held_up(app, text("UPDATE images SET width = width WHERE id = 2")):
        time.sleep(2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    s3.delay = 0
    assert len(s3.pictures()) == 2
    check_whole_and_finish(app, s3, s3_app, on_s3, to)


def check_whole_and_finish(app: Flask, s3: S3Double, s3_app: Flask, client: Client, to: str) -> None:
    """Every image is whole at every moment; another run moves the rest; a purge leaves nothing over."""
    assert shown(client) == CONTENTS
    code, said = run_cli(s3_app, "images", "verify")
    assert code == 0, said
    assert run_cli(s3_app, "images", "move", "--to", to)[0] == 0
    assert shown(client) == CONTENTS
    abandon_uploads(app)
    assert run_cli(s3_app, "purge")[0] == 0
    left = {"s3": len(s3.stored), "local": len(stored_files(app))}
    assert left == {"s3": 0, "local": 0, to: 6}
    assert count(app, "uploads") == 0
    assert run_cli(s3_app, "images", "verify")[0] == 0
    verify(app)
