"""The clinic's page where a person is quicker than the server: nothing late acts on what is shown by then."""

from collections.abc import Callable

from browser import Clinic, on_one_engine
from client import Client
from factories import at, just_now, make_appointment, make_patient, make_report, many_patients, picture
from flask import Flask
from playwright.sync_api import Page, Route, expect


class Held:
    """Requests whose answers are late: they wait until they are let go."""

    def __init__(self, page: Page, path: str, method: str = "GET") -> None:
        self.page, self.path, self.method = page, path, method
        self.waiting: list[Route] = []
        page.route(path, self._take)

    def _take(self, route: Route) -> None:
        if route.request.method == self.method:
            self.waiting.append(route)
        else:
            route.fallback()

    def after(self, act: Callable[[], object]) -> None:
        """Do what sends the request."""
        with self.page.expect_request(self.path):
            act()
        self.page.evaluate("0")  # the route has been told by then

    def let_go(self) -> None:
        """Let the answers come, and the page act on them."""
        for route in self.waiting:
            with self.page.expect_event("requestfinished", lambda request, url=route.request.url: request.url == url):
                route.continue_()
        self.waiting.clear()
        self.page.unroute(self.path)
        self.page.evaluate("new Promise((then) => setTimeout(then))")


@on_one_engine
def test_the_focus_has_moved_before_anybody_can_type(app: Flask, receptionist: Client, clinic: Clinic) -> None:
    clinic.sign_in("Rosa")

    def focused_after_a_click_on(button: str) -> str:
        # The page's answer to the click has come when its promises are kept, before the next frame and the next key.
        return str(
            clinic.button(button).evaluate(
                """async (button) => {
                    button.click();
                    for (let turn = 0; turn < 10; turn++) await null;
                    return document.activeElement.labels?.[0].textContent;
                }"""
            )
        )

    assert focused_after_a_click_on("Book…") == "Patient"
    assert focused_after_a_click_on("New patient…") == "First name"
    assert focused_after_a_click_on("Search instead") == "Patient"


@on_one_engine
def test_enter_takes_nobody_who_was_found_by_an_earlier_text(
    app: Flask, doctor: Client, receptionist: Client, clinic: Clinic
) -> None:
    make_patient(doctor, first_name="Baraka", last_name="Maina")
    make_patient(doctor, first_name="Barasa", last_name="Wekesa")
    clinic.sign_in("Rosa")
    clinic.button("Book…").click()
    field = clinic.page.get_by_role("combobox", name="Patient")
    found = clinic.page.get_by_role("listbox").get_by_role("option")
    field.fill("bara")
    expect(found).to_have_count(2)

    answers = Held(clinic.page, "**/patients?q=baras*")
    answers.after(lambda: field.fill("baras"))
    field.press("Enter")
    expect(found).to_have_count(2)  # none of them is taken
    answers.let_go()
    expect(found).to_have_count(1)
    field.press("Enter")
    expect(clinic.dialog().get_by_text("Barasa Wekesa")).to_be_visible()


@on_one_engine
def test_a_day_never_shows_the_appointments_of_another(app: Flask, doctor: Client, clinic: Clinic) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], at(10))
    day, next_day = at(0)[:10], at(0, 4)[:10]
    clinic.sign_in("Dora")
    clinic.open(f"today?on={day}")
    row = clinic.page.get_by_role("button", name="Details: Amina Wanjiru")
    expect(row).to_be_visible()
    answers = Held(clinic.page, f"**/appointment?on={next_day}*")
    answers.after(clinic.button("The next day").click)
    assert row.count() == 0
    expect(clinic.heading()).to_contain_text(f"{int(next_day[-2:])} ")
    assert clinic.page.get_by_text("0 appointments").count() == 0  # nobody knows yet
    answers.let_go()
    assert row.count() == 0
    clinic.button("The day before").click()

    changed = Held(clinic.page, "**/appointment/*", "PATCH")
    changed.after(clinic.button("Arrived: Amina Wanjiru").click)
    clinic.button("The next day").click()
    clinic.settle()
    with clinic.page.expect_response("**/appointment?on=*"):  # what is shown is loaded again
        changed.let_go()
    clinic.settle()
    assert row.count() == 0


@on_one_engine
def test_the_calendar_never_shows_another_doctor_than_it_says(
    app: Flask, doctor: Client, other_doctor: Client, receptionist: Client, clinic: Clinic
) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], at(10))
    clinic.sign_in("Rosa")
    clinic.open(f"calendar?of={doctor.user['id']}&on={at(0)[:10]}")
    shown = clinic.page.locator("button.event")
    expect(shown).to_have_count(1)
    doctors = clinic.page.get_by_label("Doctor")
    doctors.focus()  # the choice is loaded once it is wanted
    expect(doctors.get_by_role("option", name="Otto Otieno")).to_be_attached()
    answers = Held(clinic.page, f"**/appointment?user_id={other_doctor.user['id']}*")
    answers.after(lambda: doctors.select_option("Otto Otieno"))
    assert shown.count() == clinic.page.locator(".column").count() == 0
    answers.let_go()


@on_one_engine
def test_the_doctor_of_a_day_stays_chosen_on_another(
    app: Flask, doctor: Client, receptionist: Client, clinic: Clinic
) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], at(10))
    clinic.sign_in("Rosa")
    clinic.open(f"today?on={at(0)[:10]}")
    doctors = clinic.page.get_by_label("Doctor")
    doctors.select_option("Dora Otieno")
    clinic.button("The next day").click()
    expect(clinic.page.get_by_text("0 appointments")).to_be_visible()
    assert doctors.locator("option:checked").inner_text() == "Dora Otieno"


@on_one_engine
def test_a_booking_begins_with_the_day_that_is_shown(app: Flask, doctor: Client, clinic: Clinic) -> None:
    clinic.sign_in("Dora")
    for view in ("today", "calendar"):
        clinic.open(f"{view}?on={at(0)[:10]}")
        clinic.button("Book…").click()
        expect(clinic.page.get_by_label("Day", exact=True)).to_have_value(at(0)[:10])
        clinic.button("Close").click()


@on_one_engine
def test_an_appointment_names_its_own_doctor(app: Flask, doctor: Client, other_doctor: Client, clinic: Clinic) -> None:
    make_appointment(other_doctor, make_patient(doctor)["id"], at(10))
    clinic.sign_in("Dora")
    clinic.open(f"today?on={at(0)[:10]}")
    clinic.page.get_by_label("Doctor").select_option("")
    clinic.page.get_by_role("button", name="Details: Amina Wanjiru").click()
    expect(clinic.dialog().get_by_label("Doctor").locator("option:checked")).to_have_text("Otto Otieno")


@on_one_engine
def test_free_times_are_those_of_the_doctor_who_is_chosen(
    app: Flask, doctor: Client, other_doctor: Client, receptionist: Client, clinic: Clinic
) -> None:
    clinic.sign_in("Rosa")
    clinic.button("Book…").click()
    clinic.dialog().get_by_label("Doctor").select_option("Dora Otieno")
    free = clinic.page.get_by_role("group", name="Free times").get_by_role("button")
    expect(free).to_have_count(8)
    answers = Held(clinic.page, f"**/slots?user_id={other_doctor.user['id']}*")
    answers.after(lambda: clinic.dialog().get_by_label("Doctor").select_option("Otto Otieno"))
    if free.count():
        free.first.click()
    expect(clinic.page.get_by_label("Time", exact=True)).to_have_value("")
    answers.let_go()
    free.first.click()
    expect(clinic.page.get_by_label("Time", exact=True)).not_to_have_value("")


@on_one_engine
def test_the_list_of_patients_is_that_of_the_text(app: Flask, doctor: Client, clinic: Clinic) -> None:
    many_patients(app, 60)
    make_patient(doctor, first_name="Baraka", last_name="Maina")
    make_patient(doctor, first_name="Barasa", last_name="Wekesa")
    clinic.sign_in("Dora")
    clinic.open("patients")
    page = clinic.page
    search, rows = page.get_by_role("searchbox"), page.locator("tbody tr")

    more = Held(page, "**/patients?*cursor=*")
    expect(rows).to_have_count(50)
    more.after(clinic.button("Show more").click)
    search.fill("bara")
    expect(rows).to_have_count(2)
    more.let_go()
    expect(rows).to_have_count(2)

    answers = Held(page, "**/patients?q=baras*")
    answers.after(lambda: search.fill("baras"))
    search.press("Enter")
    expect(clinic.heading()).to_have_text("Patients")
    answers.let_go()
    expect(rows).to_have_count(1)
    search.press("Enter")
    expect(clinic.heading()).to_contain_text("Barasa Wekesa")


@on_one_engine
def test_the_arrows_choose_a_patient_and_no_line(
    app: Flask, doctor: Client, receptionist: Client, clinic: Clinic
) -> None:
    for first_name, last_name in (("Baraka", "Maina"), ("Barasa", "Wekesa"), ("Barasa", "Zuma")):
        make_patient(doctor, first_name=first_name, last_name=last_name)
    clinic.sign_in("Rosa")
    clinic.button("Book…").click()
    field = clinic.page.get_by_role("combobox", name="Patient")
    found = clinic.page.get_by_role("listbox").get_by_role("option")
    field.fill("bara")
    expect(found).to_have_count(3)
    answers = Held(clinic.page, "**/patients?q=baras*")
    answers.after(lambda: field.fill("baras"))
    place = found.all_inner_texts().index(next(text for text in found.all_inner_texts() if "Wekesa" in text))
    for _ in range(place):
        field.press("ArrowDown")
    expect(found.nth(place)).to_have_attribute("aria-selected", "true")
    answers.let_go()
    expect(found).to_have_count(2)
    field.press("Enter")
    expect(clinic.dialog().get_by_text("Barasa Wekesa")).to_be_visible()


@on_one_engine
def test_what_is_being_sent_can_be_neither_changed_nor_closed(app: Flask, doctor: Client, clinic: Clinic) -> None:
    make_patient(doctor)
    make_appointment(doctor, 1, at(10))
    clinic.sign_in("Dora")
    clinic.open("patients/1")
    page = clinic.page
    clinic.button("Book…").click()
    page.get_by_label("Day", exact=True).fill(at(10)[:10])
    page.get_by_label("Time", exact=True).fill("10:00")
    reason = page.get_by_label("Reason")
    reason.fill("Cough")
    answers = Held(page, "**/appointment", "POST")
    answers.after(lambda: clinic.button("Book").click())
    reason.evaluate("(field) => field.focus()")
    page.keyboard.type(" and fever")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    clinic.dialog().evaluate("(dialog) => dialog.querySelector('[aria-label=Close]').click()")
    answers.let_go()
    expect(clinic.dialog().get_by_role("alert")).to_contain_text("has appointment")  # the refusal is seen
    expect(reason).to_have_value("Cough")
    reason.fill("Cough and fever")
    page.keyboard.press("Escape")
    expect(clinic.dialog()).to_have_count(0)


@on_one_engine
def test_after_a_refusal_the_focus_is_on_the_button_that_was_pressed(
    app: Flask, doctor: Client, clinic: Clinic
) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], at(10))
    clinic.sign_in("Dora")
    clinic.open("patients/1")
    clinic.button("Book…").click()
    clinic.page.get_by_label("Day", exact=True).fill(at(10)[:10])
    clinic.page.get_by_label("Time", exact=True).fill("10:00")
    answers = Held(clinic.page, "**/appointment", "POST")
    answers.after(lambda: clinic.button("Book").press("Enter"))
    expect(clinic.page.locator(":focus")).to_have_count(0)  # what is being sent has no focus
    answers.let_go()
    expect(clinic.dialog().get_by_role("alert")).to_contain_text("has appointment")
    expect(clinic.button("Book")).to_be_focused()


@on_one_engine
def test_a_gesture_to_go_back_closes_nothing_that_is_being_sent(app: Flask, doctor: Client, clinic: Clinic) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], at(10))
    clinic.sign_in("Dora")
    clinic.open("patients/1")
    page = clinic.page
    # Escape does as the gesture of a phone does, once no script hears of the key: the second one closes the dialog.
    page.evaluate("addEventListener('keydown', (event) => event.stopImmediatePropagation(), true)")
    clinic.button("Book…").click()
    page.get_by_label("Day", exact=True).fill(at(10)[:10])
    page.get_by_label("Time", exact=True).fill("10:00")
    answers = Held(page, "**/appointment", "POST")
    answers.after(clinic.button("Book").click)
    for _ in range(3):
        page.keyboard.press("Escape")
    answers.let_go()
    expect(clinic.dialog().get_by_role("alert")).to_contain_text("has appointment")
    page.evaluate("dispatchEvent(new StorageEvent('storage', { key: 'hosi.login' }))")  # signed out in another tab
    expect(page.get_by_label("Password")).to_be_visible()
    for _ in range(3):
        page.keyboard.press("Escape")
    page.evaluate("new Promise((then) => setTimeout(then))")
    expect(page.get_by_label("Password")).to_be_visible()


@on_one_engine
def test_a_report_that_is_filed_late_leaves_the_view_that_is_shown_by_then(
    app: Flask, doctor: Client, clinic: Clinic
) -> None:
    make_patient(doctor)
    clinic.sign_in("Dora")
    clinic.open("patients/1/report")
    page = clinic.page
    page.get_by_label("Diagnosis").fill("Fracture")
    answers = Held(page, "**/reports", "POST")
    answers.after(clinic.button("File the report").click)
    page.get_by_role("link", name="Patients").click()
    clinic.button("New patient…").click()
    page.get_by_label("First name").fill("Baraka")
    answers.let_go()
    clinic.told("The report is filed.")
    expect(page.get_by_label("First name")).to_have_value("Baraka")
    expect(clinic.heading()).to_have_text("Patients")


@on_one_engine
def test_a_refusal_that_comes_after_its_view_is_gone_is_told(app: Flask, doctor: Client, clinic: Clinic) -> None:
    make_patient(doctor)
    make_appointment(doctor, 1, just_now())
    clinic.sign_in("Dora")
    answers = Held(clinic.page, "**/appointment/1", "PATCH")
    answers.after(clinic.button("Arrived: Amina Wanjiru").click)
    doctor.patch("/appointment/1", {"reason": "Wrist"})
    clinic.page.get_by_role("link", name="Statistics").click()
    answers.let_go()
    clinic.told("changed")


@on_one_engine
def test_what_is_dragged_while_the_calendar_changes_stays(app: Flask, doctor: Client, clinic: Clinic) -> None:
    moved = make_appointment(doctor, make_patient(doctor)["id"], at(10))
    page = clinic.page
    page.set_viewport_size({"width": 1280, "height": 1400})
    clinic.sign_in("Dora")
    clinic.open(f"calendar?on={at(0)[:10]}")
    box = page.locator("button.event").bounding_box()
    assert box
    page.mouse.move(box["x"] + 20, box["y"] + 8)
    page.mouse.down()
    page.mouse.move(box["x"] + 20, box["y"] + 80, steps=3)
    expect(page.locator(".ghost")).to_be_visible()
    page.evaluate(f"location.hash = '#/calendar?on={at(0, 10)[:10]}'")
    expect(page.locator("button.event")).to_have_count(0)
    clinic.settle()
    clinic.answers()
    page.mouse.move(box["x"] + 20, box["y"] + 120, steps=3)
    page.mouse.up()
    page.evaluate("new Promise((then) => setTimeout(then))")
    assert clinic.answers() == []
    assert doctor.get(f"/appointment/{moved['id']}").json["version"] == moved["version"]


@on_one_engine
def test_a_double_click_takes_one_step(app: Flask, doctor: Client, clinic: Clinic) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], just_now())
    clinic.sign_in("Dora")
    box = clinic.button("Arrived: Amina Wanjiru").bounding_box()
    assert box
    place = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    clinic.page.mouse.click(*place)
    expect(clinic.button("Done: Amina Wanjiru")).to_be_visible()
    clinic.settle()
    clinic.page.mouse.down(click_count=2)
    clinic.page.mouse.up(click_count=2)
    clinic.settle()
    assert doctor.get("/appointment/1").json["status"] == "checked_in"


@on_one_engine
def test_enter_twice_does_not_cancel_what_nobody_has_seen(app: Flask, doctor: Client, clinic: Clinic) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], at(10, 1))
    clinic.sign_in("Dora")
    clinic.open(f"staff/{doctor.user['id']}")
    clinic.button("New absence…").click()
    clinic.page.get_by_label("Cancel the appointments").check()
    clinic.page.get_by_label("Reason").press("Enter")
    expect(clinic.page.get_by_text("What will be done")).to_be_visible()
    clinic.page.keyboard.press("Enter")
    clinic.page.get_by_label("Reason").press("Enter")
    clinic.settle()
    assert doctor.get("/appointment/1").json["status"] == "scheduled"
    clinic.button("Do so").click()
    clinic.told("The absence is saved.")
    expect(clinic.page.get_by_role("button", name="Take back")).to_be_visible()


@on_one_engine
def test_a_picture_that_is_taken_away_leaves_the_one_that_is_looked_at(
    app: Flask, doctor: Client, clinic: Clinic
) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], picture(), picture(colour="red"))["id"]
    clinic.sign_in("Dora")
    clinic.open(f"reports/{report}")
    answers = Held(clinic.page, "**/reports/*/images/*", "DELETE")
    answers.after(clinic.button("Take this picture away").first.click)
    clinic.button("Open picture 2 of 2").click()
    shown = clinic.dialog().get_by_role("img").get_attribute("src")
    with clinic.page.expect_response(f"**/reports/{report}"):
        answers.let_go()
    clinic.page.wait_for_load_state("networkidle")
    assert clinic.dialog().get_by_role("img").get_attribute("src") == shown


@on_one_engine
def test_hours_that_are_being_typed_outlive_a_late_answer(app: Flask, doctor: Client, clinic: Clinic) -> None:
    doctor.send("PUT", f"/user/{doctor.user['id']}/hours", [{"weekday": "mon", "from": "09:00", "to": "12:00"}])
    clinic.sign_in("Dora")
    answers = Held(clinic.page, "**/absences")
    answers.after(lambda: clinic.page.evaluate(f"location.hash = '#/staff/{doctor.user['id']}'"))
    field = clinic.page.get_by_label("Monday from")
    field.press("End")
    clinic.page.keyboard.press("Backspace")
    clinic.page.keyboard.press("Backspace")
    answers.let_go()
    expect(clinic.page.get_by_text("None to come.")).to_be_visible()
    clinic.page.keyboard.type("30")
    expect(field).to_have_value("09:30")
