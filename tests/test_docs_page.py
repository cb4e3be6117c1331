"""The interactive page, in a real browser if one is installed."""

import re
from datetime import timedelta
from typing import Any

import pytest
from browser import on_one_engine
from client import Client, listening
from factories import PASSWORD, MakeApp, make_patient, picture, sign_up
from flask import Flask
from playwright.sync_api import FilePayload, Page, expect


def test_the_page_names_no_other_host_and_has_no_inline_script(anonymous: Client) -> None:
    page = anonymous.get("/docs")
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert "script-src 'self';" in page.headers["Content-Security-Policy"]
    assert "://" not in page.text
    assert all(tag.endswith("defer></script>") for tag in re.findall("<script.*", page.text))
    for file in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text):
        assert anonymous.get(file).status_code == 200, file


@on_one_engine
def test_one_logs_in_on_the_page_and_sends_a_request(address: str, app: Flask, admin: Client, page: Page) -> None:
    make_patient(admin)
    said: list[str] = []
    asked: list[Any] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}/docs")
    page.get_by_label("Email").fill("ada@clinic.test")
    page.get_by_label("Password").first.fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()
    expect(page.locator("#said")).to_have_text("You are Ada Otieno (admin).")
    operation = page.locator("#operations-Patients-list_patients")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table")
    expect(answer.locator("tr.response td.response-col_status")).to_contain_text("200")
    expect(answer).to_contain_text("Wanjiru")
    assert {url.split("/")[2] for url in asked if not url.startswith(("data:", "blob:"))} == {address.split("/")[2]}
    assert not said


@on_one_engine
def test_a_wrong_password_is_told_on_the_page(address: str, app: Flask, page: Page) -> None:
    sign_up(app, "Ada", "admin")
    page.goto(f"{address}/docs")
    page.get_by_label("Email").fill("ada@clinic.test")
    page.get_by_label("Password").first.fill("wrong")
    page.get_by_role("button", name="Log in", exact=True).click()
    expect(page.locator("#said")).to_have_text("The email or the password is wrong.")


def log_in(page: Page, address: str, email: str) -> None:
    page.goto(f"{address}/docs")
    page.get_by_label("Email").fill(email)
    page.get_by_label("Password").first.fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()
    expect(page.locator("#said")).to_contain_text("You are")


def send(page: Page, operation: str, file: FilePayload | None = None) -> Any:
    """Executes an operation as it stands when opened, but for a file that is chosen; returns its answer's cell."""
    block = page.locator(f"#operations-{operation}")
    block.locator(".opblock-summary-control").click()
    if file:
        block.get_by_role("button", name="Add string item").click()
        block.locator("input[type=file]").set_input_files(file)
    block.get_by_role("button", name="Execute").click()
    answer = block.locator(".live-responses-table")
    expect(answer.locator("tr.response td.response-col_status")).to_be_visible()
    return answer


@on_one_engine
def test_a_form_sends_what_was_filled_in_and_nothing_else(
    address: str, app: Flask, admin: Client, doctor: Client, page: Page
) -> None:
    patient = make_patient(admin)["id"]
    log_in(page, address, "dora@clinic.test")
    scan: FilePayload = {"name": "scan.png", "mimeType": "image/png", "buffer": picture()}
    expect(send(page, "Reports-create_report", scan)).to_contain_text("201")
    filed = doctor.get("/reports/1").json
    assert (filed["patient_id"], filed["user_id"], filed["diagnosis"]) == (patient, doctor.user["id"], "Malaria")
    expect(send(page, "Reports-update_report", scan)).to_contain_text("200")
    changed = doctor.get("/reports/1").json
    assert (changed["diagnosis"], len(changed["images"])) == ("Malaria", 2)
    page.locator("#operations-Reports-update_report").get_by_role("button", name="-", exact=True).click()
    page.get_by_placeholder("diagnosis").last.fill("Typhoid")
    page.locator("#operations-Reports-update_report").get_by_role("button", name="Execute").click()
    expect(page.locator("#operations-Reports-update_report .live-responses-table")).to_contain_text("Typhoid")


@on_one_engine
def test_the_page_asks_the_server_that_it_came_from(app: Flask, make_app: MakeApp, admin: Client, page: Page) -> None:
    make_patient(admin)
    public = make_app(PUBLIC_URL="https://api.clinic.example", JWT_SECRET_KEY=app.config["JWT_SECRET_KEY"])
    with listening(public) as address:
        log_in(page, address, "ada@clinic.test")
        expect(send(page, "Patients-list_patients")).to_contain_text("Wanjiru")


@on_one_engine
def test_a_logout_among_the_operations_is_one_of_the_page(address: str, app: Flask, admin: Client, page: Page) -> None:
    log_in(page, address, "ada@clinic.test")
    send(page, "Accounts-logout")
    expect(page.locator("#said")).to_have_text("You are signed out.")


@on_one_engine
def test_a_reload_keeps_the_login_and_renews_its_token(address: str, app: Flask, admin: Client, page: Page) -> None:
    usual = app.config["JWT_ACCESS_TOKEN_EXPIRES"]
    app.config["JWT_ACCESS_TOKEN_EXPIRES"] = timedelta(seconds=9)  # so that each request renews it
    try:
        log_in(page, address, "ada@clinic.test")
        with page.expect_response("**/refresh") as renewed:
            page.reload()
        assert renewed.value.status == 200
        expect(page.locator("#said")).to_have_text("You are Ada Otieno (admin).")
        expect(page.get_by_role("button", name="Log out")).to_be_visible()
        expect(send(page, "Accounts-get_me")).to_contain_text("ada@clinic.test")
    finally:
        app.config["JWT_ACCESS_TOKEN_EXPIRES"] = usual


@on_one_engine
def test_after_a_logout_a_reload_asks_for_the_login(address: str, app: Flask, admin: Client, page: Page) -> None:
    log_in(page, address, "ada@clinic.test")
    page.get_by_role("button", name="Log out").click()
    expect(page.locator("#said")).to_have_text("You are logged out.")
    page.reload()
    expect(page.locator("#operations-Accounts-get_me")).to_be_visible()
    expect(page.get_by_label("Email")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


@on_one_engine
@pytest.mark.parametrize("learns", ["by a reload", "by a request"])
def test_the_page_says_that_the_login_was_ended_elsewhere(
    address: str, app: Flask, admin: Client, page: Page, learns: str
) -> None:
    log_in(page, address, "ada@clinic.test")
    admin.post("/logout?everywhere=true")
    if learns == "by a reload":
        page.reload()
    else:
        send(page, "Accounts-get_me")
    expect(page.locator("#said")).to_have_text("This login has ended. Please sign in again.")
    expect(page.get_by_label("Email")).to_be_visible()


@on_one_engine
def test_there_is_one_way_to_log_in(address: str, app: Flask, page: Page) -> None:
    page.goto(f"{address}/docs")
    expect(page.locator("#operations-Accounts-get_me")).to_be_visible()
    assert page.locator(".authorize:visible, .authorization__btn:visible").count() == 0
    assert page.get_by_role("button", name="Log in").count() == 1


def overflow(page: Page) -> int:
    """Return by how many pixels the page can be scrolled sideways."""
    wide: int = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return wide


@on_one_engine
def test_the_bar_is_slim_and_nothing_scrolls_sideways(address: str, app: Flask, admin: Client, page: Page) -> None:
    make_patient(admin)
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{address}/docs")
    expect(page.locator("#operations-Accounts-get_me")).to_be_visible()
    bar = "document.querySelector('header').offsetHeight"
    assert page.evaluate(bar) < 60
    page.get_by_role("button", name="Log in").click()
    page.get_by_label("Email").fill("ada@clinic.test")
    page.get_by_label("Password").first.fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()
    expect(page.locator("#said")).to_have_text("You are Ada Otieno (admin).")
    assert page.evaluate(bar) < 60
    assert overflow(page) <= 0
    for opened in ("Patients-list_patients", "Reports-create_report", "Appointments-update_appointment"):
        page.locator(f"#operations-{opened} .opblock-summary-control").click()
    page.locator("#operations-Patients-list_patients").get_by_role("button", name="Execute").click()
    expect(page.locator("#operations-Patients-list_patients tr.response").first).to_be_visible()
    assert overflow(page) <= 0
    page.set_viewport_size({"width": 1280, "height": 844})
    assert page.evaluate(bar) < 60
    assert overflow(page) <= 0


@on_one_engine
def test_the_page_says_when_the_server_is_away(address: str, app: Flask, admin: Client, page: Page) -> None:
    page.goto(f"{address}/docs")
    page.context.set_offline(True)
    page.get_by_label("Email").fill("ada@clinic.test")
    page.get_by_label("Password").first.fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()
    expect(page.locator("#said")).to_have_text("The server does not answer.")
