"""Chromium, and what a person does on the clinic's page."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from factories import PASSWORD
from playwright.sync_api import Locator, Page, expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "Chromium is not installed (Debian: apt-get install chromium)"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
AXE = Path(__file__).parent.parent / "node_modules/axe-core/axe.min.js"
expect.set_options(timeout=30_000)  # milliseconds: a machine may be busy

on_one_engine = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # a page knows no other

REFUSALS = "the server responded with a status of 4"  # Chromium says so in the console of every refused request


class Clinic:
    """The clinic's page in a tab of Chromium. `faults` are what its console said, Content-Security-Policy included."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.faults: list[str] = []
        self.asked: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url.removeprefix(address)))

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning") and REFUSALS not in message.text:
            self.faults.append(message.text)

    def sign_in(self, name: str, password: str = PASSWORD) -> None:
        if not self.page.url.startswith(self.address):
            self.page.goto(f"{self.address}/")
        self.page.get_by_label("Email").fill(f"{name.lower()}@clinic.test")
        self.page.get_by_label("Password").fill(password)
        self.button("Sign in").click()
        expect(self.button("Sign out")).to_be_visible()

    def sign_out(self) -> None:
        self.button("Sign out").click()
        expect(self.page.get_by_text("You are signed out.")).to_be_visible()

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def open(self, view: str) -> None:
        """Go to a view by its address, and wait until it has loaded."""
        self.page.goto(f"{self.address}/#/{view}")
        self.settle()

    def follow(self, name: str) -> None:
        """Go to a view by the menu."""
        self.page.get_by_role("navigation").get_by_role("link", name=name).click()
        expect(self.heading()).to_have_text(name)
        self.settle()

    def heading(self) -> Locator:
        return self.page.get_by_role("heading", level=1)

    def settle(self) -> None:
        expect(self.heading()).to_be_visible()
        self.page.wait_for_load_state("networkidle")
        expect(self.page.get_by_text("One moment…")).to_have_count(0)

    def dialog(self) -> Locator:
        return self.page.get_by_role("dialog")

    def told(self, text: str) -> None:
        """Wait for a note at the foot of the page."""
        expect(self.page.locator(".notes")).to_contain_text(text)

    def await_pictures(self) -> None:
        """Wait for the pictures that are under way: Werkzeug leaves a file open whose reader goes away."""
        far = "image.loading === 'lazy' && image.getBoundingClientRect().top > innerHeight + 500"
        while not self.page.evaluate(f"[...document.images].every((image) => image.complete || {far})"):
            self.page.wait_for_timeout(50)

    def answers(self) -> list[str]:
        """Return the requests since the last time, without those for the page itself and for pictures."""
        asked, self.asked[:] = [*self.asked], []
        return [path for path in asked if not path.startswith(("/static/", "/media/", "blob:", "data:"))]
