"""The clinic's page: the days of those who work with it, from sign-in to sign-out, in Chromium."""

import re
from datetime import UTC, datetime, timedelta
from urllib.parse import urljoin

from browser import Clinic
from client import Client
from factories import PASSWORD, just_now, make_appointment, make_patient, make_report, picture, sign_up
from flask import Flask
from playwright.sync_api import FilePayload, expect

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def scan(name: str, colour: str = "navy") -> FilePayload:
    return {"name": name, "mimeType": "image/png", "buffer": picture(size=(900, 700), colour=colour)}


def test_a_browser_gets_the_page_and_others_name_version_and_links(anonymous: Client) -> None:
    page = anonymous.get("/", headers=BROWSER)
    assert (page.status_code, page.mimetype, page.headers["Vary"]) == (200, "text/html", "Accept")
    for accept in ("application/json", "*/*"):
        told = anonymous.get("/", headers={"Accept": accept})
        assert (told.status_code, told.json["name"], told.headers["Vary"]) == (200, "Hosi Server", "Accept")
        assert anonymous.get(told.json["links"]["documentation"]).status_code == 200


def test_the_page_has_no_inline_script_or_style_and_each_of_its_files_is_there(anonymous: Client) -> None:
    page = anonymous.get("/", headers=BROWSER)
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self'; img-src 'self' data: blob:")
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert not re.search(r"<style|style=|<script(?![^>]* src=)|://", page.text)
    files = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
    for file in files:  # grows by what the modules import
        answer = anonymous.get(file)
        assert answer.status_code == 200, file
        assert anonymous.get(file, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304
        imported = re.findall(r'from "([^"]+)"', answer.text) if file.startswith("/static/clinic/") else []
        files += sorted({urljoin(file, module) for module in imported} - {*files})
    assert len(files) > 15


def test_pictures_of_the_image_store_may_be_shown(cloud_app: Flask) -> None:
    policy = Client(cloud_app).get("/", headers=BROWSER).headers["Content-Security-Policy"]
    assert f"img-src 'self' data: blob: {'https://res.cloudinary.com'}" in policy
    assert cloud_app.config["CLOUDINARY_UPLOAD_PREFIX"] in policy


def test_the_first_visit_makes_the_administrator_the_first_patient_and_a_report(app: Flask, clinic: Clinic) -> None:
    page = clinic.page
    page.goto(f"{clinic.address}/")
    expect(clinic.heading()).to_have_text("Welcome. Make the first administrator")
    page.get_by_label("First name").fill("Ada")
    page.get_by_label("Last name").fill("Otieno")
    page.get_by_label("Email").fill("ada@clinic.test")
    page.get_by_label("Password").fill(PASSWORD)
    clinic.button("Create account").click()
    expect(clinic.heading()).to_have_text("Today")
    expect(page.get_by_text("Nobody is booked")).to_be_visible()
    clinic.follow("Patients")
    expect(page.get_by_text("No patients yet")).to_be_visible()
    clinic.button("New patient…").click()
    page.get_by_label("First name").fill("Amina")
    page.get_by_label("Last name").fill("Wanjiru")
    page.get_by_label("Phone").fill("+254 712 345 678")
    clinic.button("Register").click()
    expect(clinic.heading()).to_contain_text("Amina Wanjiru")
    page.get_by_role("link", name="New report").click()
    page.get_by_label("Diagnosis").fill("Fracture of the left wrist")
    page.locator("input[type=file]").set_input_files([scan("front.png"), scan("side.png", "teal")])
    clinic.button("File the report").click()
    clinic.told("The report is filed.")
    expect(page.get_by_role("button", name="Open picture 2 of 2")).to_be_visible()
    clinic.sign_out()


def test_a_receptionists_day(app: Flask, doctor: Client, receptionist: Client, clinic: Clinic) -> None:
    page = clinic.page
    make_patient(doctor, first_name="Baraka", last_name="Maina", diagnosis="Asthma")
    make_appointment(receptionist, 1, just_now(), user_id=doctor.user["id"])
    clinic.sign_in("Rosa")
    clinic.button("Book…").click()
    page.get_by_role("combobox", name="Patient").fill("bar mai")
    expect(page.get_by_role("listbox").get_by_role("option")).to_contain_text("Baraka Maina")
    page.get_by_role("combobox", name="Patient").press("Enter")
    clinic.dialog().get_by_label("Doctor").select_option("Dora Otieno")
    page.get_by_role("group", name="Free times").get_by_role("button").first.click()
    page.get_by_label("Reason").fill("Cough")
    clinic.button("Book").click()
    clinic.told("Booked: Baraka Maina")
    [_, booked] = receptionist.get("/appointment?sort=id").json
    assert (booked["reason"], booked["user_id"]) == ("Cough", doctor.user["id"])

    clinic.button("Book…").click()
    page.get_by_role("combobox", name="Patient").fill("Zuri Otieno")
    expect(page.get_by_text("Nobody is found by “Zuri Otieno”.")).to_be_visible()
    clinic.button("New patient…").click()
    expect(page.get_by_label("Last name")).to_have_value("Otieno")
    page.get_by_label("Phone").fill("0712 345 678")
    clinic.dialog().get_by_label("Doctor").select_option("Dora Otieno")
    page.get_by_role("group", name="Free times").get_by_role("button").first.click()
    clinic.button("Book").click()
    clinic.told("Booked: Zuri Otieno")

    page.get_by_role("button", name="Arrived: Baraka Maina").first.click()
    expect(page.get_by_text("Waiting", exact=True)).to_be_visible()
    clinic.open("patients/1")
    expect(page.get_by_text("Diagnosis")).to_have_count(0)
    expect(page.get_by_role("link", name="New report")).to_have_count(0)
    clinic.sign_out()


def test_a_doctors_day(app: Flask, admin: Client, doctor: Client, clinic: Clinic) -> None:
    page = clinic.page
    patient = make_patient(doctor, status="outpatient")["id"]
    make_appointment(doctor, patient, just_now(), reason="Wrist")
    clinic.sign_in("Dora")
    page.get_by_role("button", name="Arrived: Amina Wanjiru").click()
    page.get_by_role("button", name="Done: Amina Wanjiru").click()
    expect(page.get_by_text("1 done")).to_be_visible()
    page.get_by_role("link", name="Amina Wanjiru").last.click()
    page.get_by_role("link", name="New report").click()
    page.get_by_label("Diagnosis").fill("Fracture")
    page.locator("input[type=file]").set_input_files(
        [scan(f"{n}.png", c) for n, c in enumerate(("navy", "teal", "red"))]
    )
    clinic.button("File the report").click()
    page.get_by_role("button", name="Open picture 1 of 3").click()
    for number in (1, 2, 3, 1):
        expect(clinic.dialog().get_by_role("heading")).to_have_text(f"Picture {number} of 3")
        expect(clinic.dialog().get_by_role("img")).to_have_js_property("naturalWidth", 900)
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    clinic.button("Edit").click()
    clinic.dialog().get_by_label("State").select_option("Healed")
    clinic.button("Save").click()
    clinic.told("Amina Wanjiru is saved.")
    expect(clinic.heading()).to_contain_text("Healed")
    clinic.follow("Calendar")
    expect(page.locator(".event")).to_have_count(1)
    clinic.follow("Statistics")
    expect(page.locator(".figure").first).to_contain_text("1")
    clinic.sign_out()


def test_an_administrators_day(app: Flask, admin: Client, doctor: Client, other_doctor: Client, clinic: Clinic) -> None:
    page = clinic.page
    waiting = sign_up(app, "Nia")
    admin.patch(f"/user/{waiting['id']}", {"is_active": False})
    soon = (datetime.now(UTC) + timedelta(days=3)).strftime("%Y-%m-%d")
    patient, double = make_patient(doctor)["id"], make_patient(doctor)["id"]
    make_appointment(doctor, patient, f"{soon}T10:00")
    make_report(doctor, double)
    clinic.sign_in("Ada")
    clinic.follow("Staff")
    clinic.button("Approve Nia Otieno").click()
    clinic.told("Nia Otieno can sign in now.")

    page.get_by_role("link", name="Otieno, Dora").click()
    clinic.button("Add hours on Monday").click()
    page.get_by_label("Monday to").fill("12:30")
    clinic.button("Save the hours").click()
    clinic.told("The working hours are saved.")
    assert doctor.get(f"/user/{doctor.user['id']}/hours").json == [{"weekday": "mon", "from": "08:00", "to": "12:30"}]

    clinic.button("New absence…").click()
    page.get_by_label("From", exact=True).fill(f"{soon}T00:00")
    page.get_by_label("To", exact=True).fill(f"{soon}T23:00")
    clinic.button("Save the absence").click()
    expect(clinic.dialog().get_by_role("alert")).to_be_visible()  # an appointment is in the way
    expect(clinic.dialog().get_by_role("listitem")).to_contain_text("Amina Wanjiru")
    page.get_by_label("Appointments go to").select_option("Otto Otieno")
    clinic.button("Show what happens").click()
    expect(page.get_by_text("1 appointment is handed over, 0 are cancelled.")).to_be_visible()
    assert admin.get("/appointment/1").json["user_id"] == doctor.user["id"]  # nothing is done yet
    clinic.button("Do so").click()
    clinic.told("The absence is saved. 1 appointment handed over, 0 cancelled.")
    assert admin.get("/appointment/1").json["user_id"] == other_doctor.user["id"]

    clinic.open(f"patients/{double}")
    clinic.button("Merge…").click()
    clinic.button("Merge into Amina Wanjiru").click()
    clinic.told("Merged: 0 appointments and 1 report moved to Amina Wanjiru.")
    expect(clinic.page.locator(".course .entry")).to_have_count(2)
    clinic.follow("Statistics")
    expect(page.get_by_text("patients in all")).to_be_visible()
    page.get_by_role("link", name="Ada Otieno").click()
    expect(page.get_by_text("This one")).to_be_visible()
    clinic.sign_out()
