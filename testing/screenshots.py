"""Writes docs/images/: each view of the clinic's page at two widths, with the demonstration clinic. `make screenshots`.

It needs Chromium, and a database and a server of its own for half a minute.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from datetime import timedelta
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from werkzeug.serving import make_server

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs/images"
PASSWORD = "demo clinic password"  # of the demonstration clinic
WIDTHS = {"wide": (1280, 800), "narrow": (390, 844)}
VIEWS = {
    "today": "today?on={day}",
    "calendar": "calendar?of={doctor}&on={day}",
    "doctors": "calendar?of=&on={day}",
    "patients": "patients",
    "patient": "patients/{patient}",
    "report": "patients/{patient}/report",
    "staff": "staff",
    "hours": "staff/{doctor}",
    "statistics": "statistics",
    "account": "account",
}


def flask(*arguments: str, **settings: str) -> None:
    command = [sys.executable, "-m", "flask", "--app", "app", *arguments]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, check=True, stdout=subprocess.DEVNULL)


def save(page: Page, name: str) -> None:
    """Write what the page shows, in 128 colours: a third of the bytes."""
    shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    file = IMAGES / f"{name}.png"
    shown.quantize(128).save(file, optimize=True)
    print(f"{file.relative_to(ROOT)}  {file.stat().st_size >> 10} KB")


def take_all(page: Page, address: str, size: str, places: dict[str, object]) -> None:
    page.goto(address)
    page.get_by_label("Email").wait_for()
    save(page, f"signin-{size}")
    page.get_by_label("Email").fill("admin@hosi.example")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_role("button", name="Sign out").wait_for()
    for name, view in VIEWS.items():
        page.goto(f"{address}/#/{view.format(**places)}")
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(300)
        save(page, f"{name}-{size}")


def main() -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("Chromium is not installed (Debian: apt-get install chromium)")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"FLASK_ENV": "development", "INSTANCE_PATH": folder, "DATABASE_URL": f"sqlite:///{folder}/hosi.db"}
        os.environ |= settings
        sys.path.insert(0, str(ROOT))
        from app import create_app
        from models import Report, Role, User
        from server import times
        from server.database import db

        app = create_app()
        with app.app_context():
            today = times.today()
            monday = today - timedelta(days=today.weekday())
        flask("db", "upgrade")
        flask("seed", "--first-day", monday.isoformat(), "--password", PASSWORD)
        with app.app_context():
            doctor = db.session.query(User).filter_by(role=Role.DOCTOR).first()
            report = db.session.query(Report).order_by(Report.id.desc()).first()
            assert doctor
            assert report
            places = {"doctor": doctor.id, "patient": report.patient_id, "day": min(today, monday + timedelta(days=4))}
        server = make_server("127.0.0.1", 0, app, threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for size, (width, height) in WIDTHS.items():
                context = browser.new_context(viewport={"width": width, "height": height})
                take_all(context.new_page(), f"http://127.0.0.1:{server.server_port}", size, places)
                context.close()
        server.shutdown()


if __name__ == "__main__":
    main()
