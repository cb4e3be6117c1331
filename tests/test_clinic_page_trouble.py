"""The clinic's page where something goes wrong: hostile names, bad pictures, a lost login, a server that is away."""

import json
import time
from collections.abc import Callable
from datetime import datetime

import pytest
from browser import Clinic, on_one_engine
from client import Client, listening
from factories import PASSWORD, at, claims_of, forged, make_appointment, make_patient, many_appointments, picture
from flask import Flask
from playwright.sync_api import Page, Route, expect

SCRIPT = '<img src=x onerror="alert(1)">'
ARABIC = "عبد الرحمن بن محمد"
LONG = "W" * 100


def end_login(page: Page) -> None:
    """End the login at the server alone: the page learns of it by its next request."""
    page.evaluate(
        """() => {
            const { access_token } = JSON.parse(localStorage["hosi.login"]);
            return fetch("/logout", { method: "POST", headers: { Authorization: `Bearer ${access_token}` } });
        }"""
    )


def sign_in_over(clinic: Clinic) -> None:
    """Sign in again, over the view that is shown."""
    over = clinic.page.get_by_role("dialog", name="Sign in")
    over.get_by_label("Password").fill(PASSWORD)
    over.get_by_role("button", name="Sign in").click()
    expect(over).to_have_count(0)


@on_one_engine
@pytest.mark.parametrize("name", [SCRIPT, ARABIC, LONG], ids=["html", "arabic", "long"])
def test_a_name_is_shown_as_text_and_breaks_no_view(app: Flask, doctor: Client, clinic: Clinic, name: str) -> None:
    patient = make_patient(doctor, first_name=name)["id"]
    make_appointment(doctor, patient, at(10), reason=SCRIPT)
    page = clinic.page
    page.set_viewport_size({"width": 390, "height": 844})
    page.on("dialog", lambda dialog: clinic.faults.append(dialog.message))
    clinic.sign_in("Dora")
    for view in (
        "patients",
        f"patients/{patient}",
        f"patients/{patient}/report",
        f"today?on={at(0)[:10]}",
        f"calendar?on={at(0)[:10]}",
    ):
        clinic.open(view)
        expect(page.get_by_text(name).first).to_be_visible()
        assert page.locator("img[src=x]").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, view


@on_one_engine
def test_the_course_of_a_patient_with_two_thousand_appointments_comes_in_pages(
    app: Flask, doctor: Client, clinic: Clinic
) -> None:
    patient = make_patient(doctor)["id"]
    many_appointments(app, 2_000, patient, doctor.user["id"])
    clinic.sign_in("Dora")
    clinic.open(f"patients/{patient}")
    entries = clinic.page.locator(".course .entry")
    expect(entries).to_have_count(30)
    clinic.button("Show earlier ones").click()
    expect(entries).to_have_count(60)


@on_one_engine
def test_of_fifty_pictures_the_two_that_are_none_are_named_and_the_rest_is_filed(
    app: Flask, doctor: Client, clinic: Clinic
) -> None:
    patient = make_patient(doctor)["id"]
    clinic.sign_in("Dora")
    clinic.open(f"patients/{patient}/report")
    page = clinic.page
    contents = [b"no picture at all" if number in (7, 31) else picture() for number in range(50)]
    page.locator("input[type=file]").set_input_files(
        [{"name": f"scan{n}.png", "mimeType": "image/png", "buffer": content} for n, content in enumerate(contents)]
    )
    page.get_by_label("Diagnosis").fill("Many views")
    clinic.button("File the report").click()
    expect(page.get_by_text("Nothing was saved: 2 pictures cannot be taken.")).to_be_visible()
    faulty = page.locator(".chosen .faulty")
    expect(faulty).to_have_count(2)
    expect(faulty.first).to_contain_text("scan7.png")
    expect(faulty.last).to_contain_text("scan31.png")
    assert doctor.get("/reports").json == []
    clinic.button("Remove what cannot be taken").click()
    clinic.button("File the report").click()
    clinic.told("The report is filed.")
    [report] = doctor.get("/reports").json
    assert (len(report["images"]), report["diagnosis"]) == (48, "Many views")
    expect(page.get_by_role("button", name="Open picture 48 of 48")).to_be_visible()  # all is loaded


@on_one_engine
def test_pictures_are_dropped_and_pasted(app: Flask, doctor: Client, clinic: Clinic) -> None:
    clinic.sign_in("Dora")
    clinic.open(f"patients/{make_patient(doctor)['id']}/report")
    give = """(where) => {
        const given = new DataTransfer();
        given.items.add(new File([Uint8Array.from(atob('R0lGODlhAQABAAAAACw='), (c) => c.charCodeAt(0))], 'a.gif'));
        const event = where === '.drop' ? new DragEvent('drop', { dataTransfer: given, bubbles: true })
            : new ClipboardEvent('paste', { clipboardData: given, bubbles: true });
        document.querySelector(where).dispatchEvent(event);
    }"""
    clinic.page.evaluate(give, ".drop")
    clinic.page.evaluate(give, "textarea")
    expect(clinic.page.locator(".chosen li")).to_have_count(2)


@on_one_engine
def test_an_upload_whose_token_has_expired_is_sent_again(app: Flask, doctor: Client, clinic: Clinic) -> None:
    patient = make_patient(doctor)["id"]
    clinic.sign_in("Dora")
    clinic.open(f"patients/{patient}/report")
    page = clinic.page
    login = json.loads(page.evaluate("localStorage['hosi.login']"))
    login["access_token"] = forged(app, {**claims_of(login["access_token"]), "exp": int(time.time()) - 60})
    page.evaluate("(login) => localStorage.setItem('hosi.login', login)", json.dumps(login))
    page.locator("input[type=file]").set_input_files([{"name": "a.png", "mimeType": "image/png", "buffer": picture()}])
    clinic.button("File the report").click()
    clinic.told("The report is filed.")
    assert [len(report["images"]) for report in doctor.get("/reports").json] == [1]


@on_one_engine
def test_a_login_that_ends_before_the_password_is_changed_asks_for_a_new_one(
    app: Flask, doctor: Client, clinic: Clinic
) -> None:
    clinic.sign_in("Dora")
    clinic.open("account")
    clinic.page.get_by_label("Present password").fill(PASSWORD)
    clinic.page.get_by_label("New password").fill("a lantern over the ward")
    end_login(clinic.page)
    clinic.button("Change the password").click()
    sign_in_over(clinic)
    clinic.button("Change the password").click()
    clinic.told("Your password is changed.")


@on_one_engine
def test_a_view_is_loaded_after_a_sign_in_in_another_tab(app: Flask, doctor: Client, clinic: Clinic) -> None:
    clinic.sign_in("Dora")
    second = Clinic(clinic.page.context.new_page(), clinic.address)
    second.open("patients")
    end_login(clinic.page)
    clinic.page.get_by_role("link", name="Staff").click()
    sign_in_over(second)
    expect(clinic.page.get_by_role("cell", name="dora@clinic.test")).to_be_visible()


@on_one_engine
def test_a_login_that_ends_while_something_is_sent_leaves_it_to_be_sent_again(
    app: Flask, doctor: Client, clinic: Clinic
) -> None:
    make_patient(doctor)
    clinic.sign_in("Dora")
    clinic.open("patients/1")
    page = clinic.page
    clinic.button("Edit").click()
    page.get_by_label("Diagnosis").fill("Malaria")
    end_login(page)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "PATCH" else None)
    clinic.button("Save").click()
    sign_in_over(clinic)
    expect(page.get_by_label("Diagnosis")).to_have_value("Malaria")
    expect(clinic.dialog().get_by_role("alert")).to_have_count(0)  # nobody is to sign in again
    clinic.button("Save").click()
    clinic.told("Amina Wanjiru is saved.")
    assert len(sent) == 2  # the one that was refused, and this one
    assert doctor.get("/patient/1").json["diagnosis"] == "Malaria"


@on_one_engine
def test_a_second_tab_that_signs_out_leaves_what_was_typed(app: Flask, doctor: Client, clinic: Clinic) -> None:
    patient = make_patient(doctor)["id"]
    clinic.sign_in("Dora")
    clinic.open(f"patients/{patient}/report")
    page = clinic.page
    page.get_by_label("Diagnosis").fill("A long text")
    second = Clinic(page.context.new_page(), clinic.address)
    second.page.goto(f"{clinic.address}/#/patients")
    second.sign_out()
    expect(page.get_by_text("You signed out in another tab.")).to_be_visible()
    expect(page.get_by_label("Email")).to_have_value("dora@clinic.test")
    clinic.sign_in("Dora")
    expect(page.get_by_label("Diagnosis")).to_have_value("A long text")
    clinic.button("File the report").click()
    clinic.told("The report is filed.")
    assert doctor.get("/me").status_code == 200  # another login of hers goes on


@on_one_engine
def test_two_tabs_that_refresh_at_once_stay_signed_in(app: Flask, doctor: Client, clinic: Clinic) -> None:
    clinic.sign_in("Dora")
    second = Clinic(clinic.page.context.new_page(), clinic.address)
    second.page.goto(f"{clinic.address}/#/patients")
    second.settle()
    login = json.loads(clinic.page.evaluate("localStorage['hosi.login']"))
    login["access_token"] = forged(app, {**claims_of(login["access_token"]), "exp": int(time.time()) - 60})
    clinic.page.evaluate("(login) => localStorage.setItem('hosi.login', login)", json.dumps(login))
    for tab in (clinic, second):
        tab.page.evaluate("location.hash = '#/staff'")
    for tab in (clinic, second):
        expect(tab.page.get_by_role("cell", name="dora@clinic.test")).to_be_visible()
    # A tab may read the other's new tokens late: then the server gives the pair again, within its ten seconds.
    assert 1 <= sum(path == "/refresh" for path in clinic.asked + second.asked) <= 2


@on_one_engine
def test_a_server_that_is_away_is_told_and_nothing_typed_is_lost(app: Flask, doctor: Client, clinic: Clinic) -> None:
    patient = make_patient(doctor)["id"]
    clinic.sign_in("Dora")
    clinic.open(f"patients/{patient}/report")
    page = clinic.page
    page.get_by_label("Diagnosis").fill("A long text")
    page.context.set_offline(True)
    clinic.button("File the report").click()
    away = page.get_by_text("What you typed stays here. Trying again…")
    expect(away).to_be_visible()
    page.wait_for_timeout(5_000)
    page.context.set_offline(False)
    expect(away).to_have_count(0)
    clinic.button("File the report").click()
    clinic.told("The report is filed.")
    clinic.faults = [fault for fault in clinic.faults if "ERR_INTERNET_DISCONNECTED" not in fault]
    assert [report["diagnosis"] for report in doctor.get("/reports").json] == ["A long text"]


@on_one_engine
def test_a_booking_whose_answer_was_lost_is_made_once(app: Flask, doctor: Client, clinic: Clinic) -> None:
    make_patient(doctor)
    clinic.sign_in("Dora")
    clinic.open("patients/1")
    lost: list[str] = []

    def lose(route: Route) -> None:
        if lost:
            route.continue_()
        else:
            lost.append(route.fetch().text())
            route.abort()

    clinic.page.route("**/appointment", lose)
    clinic.button("Book…").click()
    clinic.page.get_by_label("Day").fill(at(10)[:10])
    clinic.page.get_by_label("Time", exact=True).fill("10:00")
    clinic.button("Book").click()
    expect(clinic.dialog().get_by_role("alert")).to_contain_text("The server does not answer.")
    clinic.button("Book").click()
    clinic.told("Booked: Amina Wanjiru")
    clinic.faults = [fault for fault in clinic.faults if "ERR_FAILED" not in fault]
    assert len(lost) == len(doctor.get("/appointment").json) == 1


@on_one_engine
def test_a_doctor_who_is_deactivated_at_work_is_told(app: Flask, admin: Client, doctor: Client, clinic: Clinic) -> None:
    clinic.sign_in("Dora")
    clinic.settle()  # else a request of the first view may be refused before the click
    admin.patch(f"/user/{doctor.user['id']}", {"is_active": False})
    clinic.page.get_by_role("link", name="Patients").click()
    expect(clinic.page.get_by_label("Password")).to_be_visible()
    clinic.page.get_by_label("Password").fill(PASSWORD)
    clinic.button("Sign in").click()
    expect(clinic.page.get_by_role("alert").filter(has_text="not active")).to_be_visible()


@on_one_engine
def test_two_who_edit_a_patient_at_once_see_both_versions(
    app: Flask, admin: Client, doctor: Client, clinic: Clinic
) -> None:
    patient = make_patient(doctor, status="outpatient")["id"]
    clinic.sign_in("Dora")
    clinic.open(f"patients/{patient}")
    page = clinic.page
    clinic.button("Edit").click()
    page.get_by_label("Diagnosis").fill("Malaria")
    page.get_by_label("Phone").fill("0711 000 000")
    admin.patch(f"/patient/{patient}", {"diagnosis": "Typhoid", "phone_number": "0722 000 000", "sex": "female"})
    clinic.button("Save").click()
    expect(page.get_by_text("Somebody else has changed this patient meanwhile.")).to_be_visible()
    row = page.get_by_role("row").filter(has_text="Diagnosis")
    expect(row).to_contain_text("Malaria")
    expect(row).to_contain_text("Typhoid")
    row.get_by_text("Typhoid").click()
    clinic.button("Save what is chosen").click()
    clinic.told("Amina Wanjiru is saved.")
    saved = doctor.get(f"/patient/{patient}").json
    assert (saved["diagnosis"], saved["phone_number"], saved["sex"]) == ("Typhoid", "0711 000 000", "female")


def drag(page: Page, what: str, by: int) -> None:
    """Drag an appointment of the calendar down by minutes."""
    box = page.locator("button.event").filter(has_text=what).bounding_box()
    assert box
    page.mouse.move(box["x"] + 20, box["y"] + 8)
    page.mouse.down()
    page.mouse.move(box["x"] + 22, box["y"] + 8 + by * 0.6, steps=4)
    page.mouse.move(box["x"] + 20, box["y"] + 8 + by * 1.15, steps=4)
    page.mouse.up()


@on_one_engine
def test_what_is_dragged_moves_or_goes_back_with_the_refusal(app: Flask, doctor: Client, clinic: Clinic) -> None:
    first, second = make_patient(doctor, last_name="Achieng")["id"], make_patient(doctor, last_name="Bello")["id"]
    moved = make_appointment(doctor, first, at(10))["id"]
    make_appointment(doctor, second, at(12))
    clinic.page.set_viewport_size({"width": 1280, "height": 1400})
    clinic.sign_in("Dora")
    clinic.open(f"calendar?on={at(0)[:10]}")
    drag(clinic.page, "Achieng", 60)
    clinic.told("Amina Achieng is moved to")
    assert doctor.get(f"/appointment/{moved}").json["appointment_datetime"][:16] == at(11)
    expect(clinic.page.locator("button.event").filter(has_text="11:00 Amina Achieng")).to_be_visible()
    drag(clinic.page, "Achieng", 60)
    expect(clinic.page.get_by_role("alert").filter(has_text="has appointment")).to_be_visible()
    expect(clinic.page.get_by_text("Amina Achieng stays at")).to_be_visible()
    expect(clinic.page.locator("button.event").filter(has_text="11:00 Amina Achieng")).to_be_visible()
    assert doctor.get(f"/appointment/{moved}").json["appointment_datetime"][:16] == at(11)


@on_one_engine
def test_times_are_the_clinics_whatever_the_zone_of_the_browser(
    app: Flask, doctor: Client, at_home: Callable[[Client, str], Client], chromium: object, page: Page
) -> None:
    home = at_home(doctor, "Asia/Kolkata")
    make_appointment(home, make_patient(home)["id"], at(10))
    context = page.context.browser.new_context(timezone_id="America/Los_Angeles")  # type: ignore[union-attr]
    with listening(home.app) as address:
        clinic = Clinic(context.new_page(), address)
        clinic.sign_in("Dora")
        clinic.open(f"calendar?on={at(0)[:10]}")
        expect(clinic.page.locator(".event")).to_contain_text("10:00 Amina Wanjiru")
        clinic.page.locator(".event").press("Enter")
        expect(clinic.page.get_by_label("Time", exact=True)).to_have_value("10:00")
        today = home.get("/").json["today"]
        clinic.page.keyboard.press("Escape")
        clinic.follow("Today")
        day = datetime.fromisoformat(today)
        expect(clinic.page.get_by_text(f"{day:%A}, {day.day} {day:%B %Y}")).to_be_visible()
    context.close()
    assert not clinic.faults
