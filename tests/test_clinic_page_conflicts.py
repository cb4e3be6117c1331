"""The clinic's page where somebody else changes what is edited, or the login ends meanwhile."""

from collections.abc import Callable

from browser import Clinic, on_one_engine
from client import Client
from factories import PASSWORD, just_now, make_appointment, make_patient, make_report
from flask import Flask
from playwright.sync_api import expect


def sign_out_and_in(clinic: Clinic, meanwhile: Callable[[], object], path: str) -> None:
    """Another tab signs out. After the new sign-in everything is loaded again, also what has this path."""
    second = Clinic(clinic.page.context.new_page(), clinic.address)
    second.page.goto(f"{clinic.address}/#/account")
    second.sign_out()
    second.page.close()
    expect(clinic.page.get_by_text("You signed out in another tab.")).to_be_visible()
    meanwhile()
    password = clinic.page.get_by_label("Password")
    password.click()  # it can be reached
    password.fill(PASSWORD)
    with clinic.page.expect_event("requestfinished", lambda request: request.url == f"{clinic.address}{path}"):
        clinic.button("Sign in").click()
    expect(clinic.page.get_by_text("You signed out in another tab.")).to_have_count(0)


@on_one_engine
def test_what_is_typed_in_a_dialog_outlives_the_login_and_meets_what_others_saved(
    app: Flask, admin: Client, doctor: Client, clinic: Clinic
) -> None:
    make_patient(doctor)
    clinic.sign_in("Dora")
    clinic.open("patients/1")
    clinic.button("Edit").click()
    dialog = clinic.dialog().filter(has_text="Edit Amina")
    dialog.get_by_label("Diagnosis").fill("Malaria")
    dialog.get_by_label("State").select_option("Critical")
    sign_out_and_in(
        clinic, lambda: admin.patch("/patient/1", {"diagnosis": "Typhoid", "status": "admitted"}), "/patient/1"
    )
    expect(dialog.get_by_label("Diagnosis")).to_have_value("Malaria")
    expect(dialog.get_by_label("State")).to_have_value("critical")
    clinic.button("Save").click()
    expect(clinic.page.get_by_text("Somebody else has changed this patient meanwhile.")).to_be_visible()
    expect(clinic.page.get_by_role("row").filter(has_text="Diagnosis")).to_contain_text("Typhoid")


@on_one_engine
def test_a_report_that_is_loaded_again_keeps_what_is_typed_and_writes_over_nobody(
    app: Flask, admin: Client, doctor: Client, clinic: Clinic
) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], diagnosis="Fracture")["id"]
    clinic.sign_in("Dora")
    clinic.open(f"reports/{report}")
    text = clinic.page.get_by_label("Diagnosis")
    text.fill("Fracture of the wrist")
    sign_out_and_in(clinic, lambda: admin.patch(f"/reports/{report}", {"diagnosis": "Sprain"}), f"/reports/{report}")
    expect(text).to_have_value("Fracture of the wrist")
    clinic.button("Save").click()
    expect(clinic.page.get_by_role("alert").filter(has_text="changed")).to_be_visible()
    assert doctor.get(f"/reports/{report}").json["diagnosis"] == "Sprain"


@on_one_engine
def test_a_view_that_cannot_be_loaded_again_keeps_what_is_typed(app: Flask, doctor: Client, clinic: Clinic) -> None:
    make_patient(doctor)
    clinic.sign_in("Dora")
    clinic.open("patients/1/report")
    text = clinic.page.get_by_label("Diagnosis")
    text.fill("A long text")
    busy = {"status": 503, "json": {"msg": "The server is busy.", "code": "busy"}}
    clinic.page.route("**/patient/1", lambda route: route.fulfill(**busy))
    sign_out_and_in(clinic, lambda: None, "/patient/1")
    expect(clinic.page.get_by_text("The server is busy.")).to_be_visible()
    clinic.faults = [fault for fault in clinic.faults if "503" not in fault]
    expect(text).to_have_value("A long text")


@on_one_engine
def test_hours_that_are_loaded_again_write_over_nobody(
    app: Flask, admin: Client, doctor: Client, clinic: Clinic
) -> None:
    clinic.sign_in("Dora")
    path = f"/user/{doctor.user['id']}/hours"
    clinic.open(f"staff/{doctor.user['id']}")
    clinic.button("Add hours on Monday").click()
    clinic.page.get_by_label("Last name").fill("Kamau")

    def meanwhile() -> None:
        admin.send("PUT", path, [{"weekday": "tue", "from": "09:00", "to": "12:00"}])
        admin.patch(f"/user/{doctor.user['id']}", {"first_name": "Dorothea"})

    sign_out_and_in(clinic, meanwhile, path)
    expect(clinic.page.get_by_label("Last name")).to_have_value("Kamau")
    clinic.button("Save the hours").click()
    expect(clinic.page.get_by_role("alert").filter(has_text="changed")).to_be_visible()
    assert [span["weekday"] for span in doctor.get(path).json] == ["tue"]


@on_one_engine
def test_who_is_told_of_a_change_by_another_can_go_on(app: Flask, doctor: Client, clinic: Clinic) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], just_now())
    clinic.sign_in("Dora")
    arrived = clinic.button("Arrived: Amina Wanjiru")
    expect(arrived).to_be_visible()
    doctor.patch("/appointment/1", {"reason": "Wrist"})
    arrived.click()
    expect(clinic.page.locator(".entry").get_by_role("alert")).to_contain_text("changed")
    expect(clinic.page.locator(".entry")).to_contain_text("Wrist")  # as it is now
    clinic.page.get_by_role("button", name="Details: Amina Wanjiru").click()
    doctor.patch("/appointment/1", {"status": "checked_in"})
    clinic.page.get_by_label("Note").fill("Left hand")
    clinic.button("Save").click()
    expect(clinic.dialog().get_by_role("alert")).to_contain_text("arrived")
    clinic.button("Save").click()
    clinic.told("The appointment is changed.")
    changed = doctor.get("/appointment/1").json
    assert (changed["status"], changed["note"]) == ("checked_in", "Left hand")


@on_one_engine
def test_who_edits_an_account_that_another_has_changed_can_go_on(
    app: Flask, admin: Client, doctor: Client, clinic: Clinic
) -> None:
    clinic.sign_in("Dora")
    path = f"/user/{doctor.user['id']}"
    clinic.open(f"staff/{doctor.user['id']}")
    clinic.page.get_by_label("Last name").fill("Kamau")
    admin.patch(path, {"first_name": "Dorothea"})
    clinic.button("Save").click()
    expect(clinic.page.get_by_role("alert").filter(has_text="changed")).to_be_visible()
    expect(clinic.page.get_by_label("First name")).to_have_value("Dorothea")
    clinic.button("Save").click()
    clinic.told("Dorothea Kamau is saved.")
    expect(clinic.heading()).to_contain_text("Dorothea Kamau")
