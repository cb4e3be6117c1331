"""Each view of the clinic's page: its requests, its width, its colours, and what a screen reader finds in it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from browser import AXE, Clinic, on_one_engine
from client import Client
from factories import PASSWORD, just_now, make_appointment, make_patient, make_report, picture
from flask import Flask
from playwright.sync_api import expect

NEXT_WEEK = f"{datetime.now(UTC) + timedelta(days=7):%Y-%m-%d}"

# Each view, its heading, and what else a screen reader finds in it.
VIEWS = {
    "today": ("Today", 'button "Details: Amina Wanjiru'),
    "calendar": ("Calendar", '- region "Calendar"'),
    "calendar?of=": ("Calendar", '- group "Doctors shown"'),
    "patients": ("Patients", '- searchbox "Search"'),
    "patients/1": ("Amina Wanjiru", '- button "Open picture 1 of 1"'),
    "patients/1/report": ("New report", '- textbox "Diagnosis"'),
    "reports/1": ("Report", '- button "Take this picture away"'),
    "staff": ("Staff", '- columnheader "Role"'),
    "staff/2": ("Dora Otieno", '- button "Add hours on Monday"'),
    "statistics": ("Statistics", '- table "Patients by state"'),
    "account": ("Ada Otieno", '- textbox "Present password"'),
}


@pytest.fixture
def working(app: Flask, admin: Client, doctor: Client, other_doctor: Client, clinic: Clinic) -> Clinic:
    """The page of a clinic at work, before the sign-in."""
    patient = make_patient(doctor, date_of_birth="1990-05-31")["id"]
    make_patient(doctor, date_of_birth="1990-05-31", status="critical")
    make_appointment(doctor, patient, just_now(), status="checked_in", reason="Wrist")
    make_appointment(doctor, patient, f"{NEXT_WEEK}T10:00")
    make_report(doctor, patient, picture(), diagnosis="Fracture")
    return clinic


@on_one_engine
def test_each_view_costs_three_requests_at_most_and_is_read_aloud(working: Clinic) -> None:
    working.sign_in("Ada")
    working.settle()
    working.page.goto("about:blank")
    working.answers()
    for view, (heading, part) in VIEWS.items():
        working.open(view)
        expect(working.heading()).to_contain_text(heading)
        tree = working.page.locator("body").aria_snapshot()
        assert part in tree, tree
        assert all(landmark in tree for landmark in ("- main", '- navigation "Views"', "- banner")), view
        asked = working.answers()
        assert asked[:2] == ["/", "/"], view  # the page and its JSON
        assert 1 <= len(asked[2:]) <= 3, asked
        working.page.goto("about:blank")


def axe(clinic: Clinic) -> list[Any]:
    """Return the serious faults that axe finds."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed (make newman)")
    clinic.page.evaluate(AXE.read_text("utf-8"))
    found = clinic.page.evaluate("axe.run().then((found) => found.violations)")
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    return [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in serious]


@on_one_engine
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious_and_nothing_scrolls_sideways(working: Clinic, width: int, scheme: Any) -> None:
    page = working.page
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.goto(f"{working.address}/")
    expect(page.get_by_label("Email")).to_be_visible()
    assert axe(working) == []
    working.sign_in("Ada")
    for view in VIEWS:
        working.open(view)
        assert axe(working) == [], view
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, view
    for view, button in (
        ("patients/1", "Edit"),
        ("today", "Book…"),
        ("patients", "New patient…"),
        ("staff/2", "New absence…"),
    ):
        working.open(view)
        working.button(button).click()
        expect(working.dialog()).to_be_visible()
        page.wait_for_load_state("networkidle")
        assert axe(working) == [], button
        page.keyboard.press("Escape")
        expect(working.dialog()).to_have_count(0)
        expect(working.button(button)).to_be_focused()


@on_one_engine
def test_the_keyboard_alone_books_an_appointment(app: Flask, working: Clinic, doctor: Client) -> None:
    page = working.page
    page.goto(f"{working.address}/")
    expect(page.get_by_label("Email")).to_be_focused()
    page.keyboard.type("dora@clinic.test")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(working.heading()).to_have_text("Today")
    working.open("patients")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("ami wan")
    expect(page.get_by_text("found by “ami wan”")).to_be_visible()
    page.keyboard.press("Enter")
    expect(working.heading()).to_contain_text("Amina Wanjiru")
    expect(page.get_by_role("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(working.button("Book…")).to_be_focused()
    page.keyboard.press("Enter")
    day = page.get_by_label("Day")
    for _ in range(8):
        if day.evaluate("(input) => input === document.activeElement"):
            break
        page.keyboard.press("Tab")
    day.fill(NEXT_WEEK)  # how a date is typed depends on the locale of the browser
    page.get_by_label("Time", exact=True).fill("11:00")
    page.get_by_label("Reason").focus()
    page.keyboard.type("Follow-up")
    for _ in range(4):
        if working.button("Book").evaluate("(button) => button === document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    working.told("Booked: Amina Wanjiru")
    assert doctor.get("/appointment?sort=-id").json[0]["reason"] == "Follow-up"
