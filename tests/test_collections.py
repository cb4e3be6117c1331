"""Collections: streams, pages, orders, filters and searches; wrong parameters, and clients that hang up."""

import json
import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from client import Client, all_pages, ids, next_of, pages
from factories import MakeApp, make_appointment, make_patient, make_report, many_patients, picture, sign_in, sign_up
from flask import Flask
from sql import sql

from clinic import collections
from testing.statements import counted_statements


def found(client: Client, q: str, path: str = "/patients") -> list[str]:
    response = client.get(path, query_string={"q": q})
    assert response.status_code == 200, response.json
    return [row["first_name"] for row in response.json]


# --- Whole collections ---


@pytest.mark.parametrize("path", ["/patients", "/appointment", "/reports"])
def test_an_empty_collection_is_an_empty_array(doctor: Client, path: str) -> None:
    assert doctor.get(path).data == b"[]"
    assert doctor.get(f"{path}?limit=5").data == b"[]"


def test_without_a_limit_all_is_streamed_in_pieces(app: Flask, doctor: Client) -> None:
    many_patients(app, 1234)
    with doctor.http.get("/patients", headers={"Authorization": f"Bearer {doctor.token}"}) as response:
        assert response.mimetype == "application/json"
        assert "Content-Length" not in response.headers
        pieces = list(response.iter_encoded())
    assert len(pieces) > 2
    assert len(json.loads(b"".join(pieces))) == 1234


def test_a_record_is_the_same_alone_in_a_page_and_in_the_whole(doctor: Client) -> None:
    patient = make_patient(doctor, admitted_at="2026-05-31T10:00", date_of_birth="1990-05-31", sex="female")
    make_appointment(doctor, patient["id"])
    report = make_report(doctor, patient["id"], picture(), picture(colour="red"))
    for collection, one in (
        ("/patients", f"/patient/{patient['id']}"),
        ("/appointment", "/appointment/1"),
        ("/users", "/user/1"),
        ("/reports", f"/reports/{report['id']}"),
    ):
        shown = [doctor.get(path).json for path in (one, collection, f"{collection}?limit=1")]
        alone, whole, page = (re.sub(r"\?reader=[^\"]*", "", json.dumps(body)) for body in shown)
        assert json.loads(whole)[0] == json.loads(page)[0] == json.loads(alone)


def test_a_report_without_images_left_is_shown_with_none(app: Flask, doctor: Client) -> None:
    make_report(doctor, make_patient(doctor)["id"])
    sql(app, "UPDATE images SET deleted_at = created_at")
    assert doctor.get("/reports").json[0]["images"] == []


def test_the_number_of_statements_does_not_depend_on_the_number_of_rows(app: Flask, doctor: Client) -> None:
    make_report(doctor, make_patient(doctor)["id"])
    numbers = []
    for month in (3, 4):
        with counted_statements(app) as statements:
            for path in ("/reports", "/reports?limit=50", "/appointment?limit=50", "/patients?limit=50&total=true"):
                assert doctor.get(path).status_code == 200
        numbers.append(len(statements))
        for number in range(6):
            patient = make_patient(doctor)
            make_report(doctor, patient["id"], picture(), picture(colour="red"))
            make_appointment(doctor, patient["id"], f"2030-0{month}-{number + 1:02}T10:00")
    assert numbers == [9, 9]


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("/patient/1", 1),
        ("/patients?limit=100", 2),
        ("/patients?limit=100&total=true", 3),
        ("/patients?limit=100&q=amina", 2),
        ("/patients?limit=100&sort=-admitted_at&status=admitted&status=ongoing", 2),
        ("/appointment?limit=100", 2),
        ("/reports?limit=100", 3),
    ],
)
def test_reading_takes_few_statements(app: Flask, doctor: Client, path: str, most: int) -> None:
    make_report(doctor, make_patient(doctor)["id"])
    with counted_statements(app) as statements:
        assert doctor.get(path).status_code == 200
    assert len(statements) <= most, statements


def test_creating_takes_few_statements(app: Flask, doctor: Client) -> None:
    patient = make_patient(doctor)
    with counted_statements(app) as for_patient:
        make_patient(doctor)
    with counted_statements(app) as for_appointment:
        make_appointment(doctor, patient["id"])
    assert len(for_patient) <= 8, for_patient  # the last one looks for duplicates
    assert len(for_appointment) <= 8, for_appointment  # one reads the hours and absences of the doctor


# --- Pages ---


def test_pages_lead_on_to_the_last_one(doctor: Client) -> None:
    made = [make_patient(doctor)["id"] for _ in range(7)]
    assert [len(page) for page in pages(doctor, "/patients?limit=3")] == [3, 3, 1]
    assert all_pages(doctor, "/patients?limit=3") == made
    assert next_of(doctor.get("/patients?limit=7")) is None


def test_a_page_is_as_it_was_when_rows_come_before_it_or_go(admin: Client) -> None:
    made = [make_patient(admin, last_name=name)["id"] for name in ("B", "C", "D", "E")]
    first = admin.get("/patients?limit=2&sort=last_name")
    make_patient(admin, last_name="A")
    admin.delete(f"/patient/{made[1]}")
    following = next_of(first)
    assert following
    assert ids(admin.get(following)) == made[2:]


def test_the_link_keeps_what_was_asked(doctor: Client) -> None:
    for _ in range(3):
        make_patient(doctor)
    following = next_of(doctor.get("/patients?limit=1&status=admitted&status=critical&sort=last_name&total=true"))
    assert following
    asked = parse_qs(urlsplit(following).query)
    assert asked.pop("cursor")
    assert asked == {"limit": ["1"], "status": ["admitted", "critical"], "sort": ["last_name"], "total": ["true"]}


def test_a_link_is_relative_or_by_the_public_url_never_by_the_host(app: Flask, make_app: MakeApp) -> None:
    sign_up(app, "Ada", "admin")
    public = make_app(PUBLIC_URL="https://api.clinic.example", JWT_SECRET_KEY=app.config["JWT_SECRET_KEY"])
    for served, begins in ((app, "/patients?"), (public, "https://api.clinic.example/patients?")):
        ada = sign_in(served, "Ada")
        make_patient(ada), make_patient(ada)
        following = next_of(ada.get("/patients?limit=1", headers={"Host": "evil.example"}))
        assert following
        assert following.startswith(begins)


def test_the_total_counts_what_the_filters_leave(doctor: Client, admin: Client) -> None:
    for status in ("admitted", "critical", "critical"):
        make_patient(doctor, status=status, first_name="Baraka")
    admin.delete("/patient/3")
    for asked, total in (("", 2), ("&status=critical", 1), ("&q=baraka", 2), ("&q=zebra", 0)):
        assert doctor.get(f"/patients?limit=1&total=true{asked}").headers["X-Total-Count"] == str(total)
    assert doctor.get("/patients?total=true").headers["X-Total-Count"] == "2"
    assert "X-Total-Count" not in doctor.get("/patients?limit=1").headers


@pytest.mark.parametrize(
    "asked", ["", "&status=critical", "&q=baraka", "&sort=-admitted_at", "&q=baraka&status=critical"]
)
def test_a_large_total_is_estimated_on_postgresql_and_says_so(
    app: Flask, doctor: Client, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    for _ in range(3):
        make_patient(doctor, status="critical", first_name="Baraka")
    headers = doctor.get(f"/patients?limit=1&total=true{asked}").headers
    assert (headers["X-Total-Count"], headers.get("X-Total-Count-Estimated")) == ("3", None)
    monkeypatch.setattr(collections, "most_counted", lambda shape: 2)
    headers = doctor.get(f"/patients?limit=1&total=true{asked}").headers
    if app.config["SQLALCHEMY_DATABASE_URI"].startswith("sqlite"):
        assert (headers["X-Total-Count"], headers.get("X-Total-Count-Estimated")) == ("3", None)
    else:
        assert int(headers["X-Total-Count"]) >= 3
        assert headers["X-Total-Count-Estimated"] == "true"


def test_the_total_is_the_same_on_every_page(doctor: Client) -> None:
    for _ in range(3):
        make_patient(doctor)
    following: str | None = "/patients?limit=1&total=true&sort=-last_name"
    while following:
        response = doctor.get(following)
        assert response.headers["X-Total-Count"] == "3"
        following = next_of(response)


# --- Orders ---


def test_patients_come_by_name_and_by_admission(doctor: Client) -> None:
    for last, first, admitted in (
        ("Otieno", "Baraka", "2026-03-01T10:00"),
        ("Kamau", "Zawadi", None),
        ("Otieno", "Amina", "2026-01-01T10:00"),
        ("Achieng", "Juma", None),
        ("Kamau", "Zawadi", "2026-03-01T10:00"),
    ):
        make_patient(doctor, last_name=last, first_name=first, admitted_at=admitted, status="outpatient")
    for order, expected in (
        ("id", [1, 2, 3, 4, 5]),
        ("-id", [5, 4, 3, 2, 1]),
        ("last_name", [4, 2, 5, 3, 1]),
        ("-last_name", [1, 3, 5, 2, 4]),
        ("admitted_at", [3, 1, 5, 2, 4]),  # the unknown last,
        ("-admitted_at", [5, 1, 3, 4, 2]),  # whichever way
    ):
        assert ids(doctor.get(f"/patients?sort={order}")) == expected
        for limit in (1, 2, 3, 4, 5):
            assert all_pages(doctor, f"/patients?limit={limit}&sort={order}") == expected


@pytest.mark.parametrize("order", ["appointment_datetime", "-appointment_datetime"])
def test_appointments_at_one_time_are_all_on_some_page(doctor: Client, other_doctor: Client, order: str) -> None:
    for client in (doctor, other_doctor):
        for hour in (10, 11):
            make_appointment(client, make_patient(doctor)["id"], f"2030-03-01T{hour}:00")
    expected = [1, 3, 2, 4] if order[0] != "-" else [4, 2, 3, 1]
    assert all_pages(doctor, f"/appointment?limit=1&sort={order}") == expected


def test_appointments_and_reports_come_by_their_times(app: Flask, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    for day in (3, 1, 2):
        make_appointment(doctor, patient, f"2030-03-0{day}T10:00")
        make_report(doctor, patient)
    sql(app, "UPDATE reports SET created_at = (SELECT created_at FROM reports WHERE id = 1)")
    for path, order, expected in (
        ("/appointment", "appointment_datetime", [2, 3, 1]),
        ("/appointment", "-appointment_datetime", [1, 3, 2]),
        ("/reports", "created_at", [1, 2, 3]),
        ("/reports", "-created_at", [3, 2, 1]),
        ("/reports", "-id", [3, 2, 1]),
        ("/users", "-last_name", [2, 1]),
    ):
        assert ids(doctor.get(f"{path}?sort={order}")) == expected
        assert all_pages(doctor, f"{path}?limit=1&sort={order}") == expected


# --- Filters ---


def test_repeated_keys_mean_any_of_in_every_order(doctor: Client) -> None:
    for number, status in enumerate(("admitted", "critical", "healed", "critical", "admitted")):
        admitted = None if number % 2 else f"2026-01-0{number + 1}T10:00"
        make_patient(doctor, status=status, admitted_at=admitted)
    assert ids(doctor.get("/patients?status=Critical")) == [2, 4]
    for order in ("id", "-id", "last_name", "admitted_at", "-admitted_at"):
        path = f"/patients?status=critical&status=admitted&status=critical&sort={order}"
        whole = ids(doctor.get(path))
        assert sorted(whole) == [1, 2, 4, 5]
        for limit in (1, 2, 3):
            assert all_pages(doctor, f"{path}&limit={limit}") == whole


def test_patients_by_their_admission_come_in_its_order(doctor: Client) -> None:
    for admitted in ("2026-03-02T00:00", "2026-03-01T23:59", None, "2026-02-28T10:00"):
        make_patient(doctor, admitted_at=admitted, status="outpatient")
    assert ids(doctor.get("/patients?admitted_from=2026-03-01")) == [2, 1]
    assert ids(doctor.get("/patients?admitted_to=2026-03-01")) == [4, 2]  # the whole of that day
    assert ids(doctor.get("/patients?admitted_to=2026-03-01T23:58")) == [4]
    assert ids(doctor.get("/patients?admitted_from=2026-03-02T00:00&admitted_to=2026-03-02T00:00")) == [1]
    assert ids(doctor.get("/patients?admitted_from=2026-01-01&sort=-id")) == [4, 2, 1]
    assert all_pages(doctor, "/patients?admitted_from=2026-01-01&limit=1") == [4, 2, 1]


def test_the_days_of_a_filter_are_the_clinics(doctor: Client, at_home: Callable[[Client, str], Client]) -> None:
    make_patient(doctor, admitted_at="2026-03-01T22:00:00Z")
    day = "/patients?admitted_from=2026-03-01&admitted_to=2026-03-01"
    assert ids(doctor.get(day)) == [1]
    assert ids(at_home(doctor, "Africa/Nairobi").get(day)) == []


def test_appointments_by_doctor_patient_status_and_time(doctor: Client, other_doctor: Client) -> None:
    first, second = (make_patient(doctor)["id"] for _ in range(2))
    make_appointment(doctor, first, "2030-03-01T10:00")
    make_appointment(other_doctor, first, "2030-03-02T10:00")
    make_appointment(doctor, second, "2030-03-03T10:00", status="confirmed")
    mine, theirs = doctor.user["id"], other_doctor.user["id"]
    for asked, expected in (
        (f"user_id={mine}", [1, 3]),
        (f"user_id={mine}&user_id={theirs}", [1, 2, 3]),
        (f"patient_id={first}", [1, 2]),
        (f"patient_id={first}&user_id={theirs}", [2]),
        ("status=Confirmed&status=cancelled", [3]),
        ("from=2030-03-02&to=2030-03-02", [2]),
        (f"from=2030-03-02&user_id={mine}&sort=-appointment_datetime", [3]),
        ("user_id=999", []),
    ):
        assert ids(doctor.get(f"/appointment?{asked}")) == expected
        assert all_pages(doctor, f"/appointment?limit=1&{asked}") == expected


def test_more_values_than_are_looked_up_one_by_one(doctor: Client) -> None:
    patients = [make_patient(doctor)["id"] for _ in range(36)]
    for number, patient in enumerate(patients):
        make_appointment(doctor, patient, f"2030-0{number // 28 + 3}-{number % 28 + 1:02}T10:00")
    for count in (3, 18, 35):
        asked = "&".join(f"patient_id={patient}" for patient in patients[:count])
        assert all_pages(doctor, f"/appointment?limit=5&total=true&{asked}") == list(range(1, count + 1))


def test_reports_by_author_patient_and_time(doctor: Client, other_doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    make_report(doctor, patient)
    make_report(other_doctor, patient)
    assert ids(doctor.get(f"/reports?user_id={doctor.user['id']}")) == [1]
    assert ids(doctor.get(f"/reports?patient_id={patient}&from=2020-01-01")) == [1, 2]
    assert ids(doctor.get("/reports?to=2020-01-01")) == []


def test_the_staff_by_role_and_whether_they_are_active(admin: Client, doctor: Client, other_doctor: Client) -> None:
    admin.patch(f"/user/{other_doctor.user['id']}", {"is_active": False})
    assert ids(admin.get("/users?role=doctor")) == [2, 3]
    assert ids(admin.get("/users?role=admin&role=user")) == [1, 2, 3]
    assert ids(admin.get("/users?is_active=true")) == [1, 2]
    assert ids(admin.get("/users?is_active=false&role=doctor")) == [3]


# --- Searches ---


JOSE = ["josé", "jose", "JOSE", "jo", "jose\u0301", "obrien", "O'Brien", "o’brien", "łoś", "los", "jose los", "obr jos"]
NUMBER = ["+254 712 345 678", "254712", "+254712", "345678", "712345678", "los 2547"]


@pytest.mark.parametrize("q", [*JOSE, *NUMBER])
def test_a_patient_is_found_by_what_a_word_of_theirs_begins_with(doctor: Client, q: str) -> None:
    make_patient(doctor, first_name="José Mary", last_name="O'Brien-Łoś", phone_number="+254 (712) 345-678")
    make_patient(doctor, first_name="Nobody", last_name="Else", phone_number="111111")
    assert found(doctor, q) == ["José Mary"]
    assert found(doctor, q.upper()) == ["José Mary"]


@pytest.mark.parametrize(
    "q", ["ose", "rien", "712345", "jose zebra", "%", "_", "%ose", "'", '"', "--", "\\", "<876", "**"]
)
def test_and_by_nothing_else(doctor: Client, q: str) -> None:
    make_patient(doctor, first_name="José", last_name="O'Brien", phone_number="+254 712 345 678")
    assert found(doctor, q) == []
    assert doctor.get("/patients", query_string={"q": q, "limit": 5, "total": True}).headers["X-Total-Count"] == "0"


def test_a_patient_is_found_by_the_beginning_of_the_mrn(doctor: Client) -> None:
    patient = make_patient(doctor, phone_number="000")
    assert found(doctor, patient["mrn"]) == found(doctor, patient["mrn"][:6]) == ["Amina"]
    assert found(doctor, f"{patient['mrn'][:3]} {patient['mrn'][3:]}") == ["Amina"]
    assert found(doctor, patient["mrn"][4:]) == []


@pytest.mark.parametrize(
    ("name", "q"),
    [
        ("محمد", "محم"),
        ("مُحَمَّد", "محمد"),
        ("علی\u200cرضا", "علیرضا"),  # with a joiner between, as Persian is written
        ("Ελένη", "ελενη"),
        ("Straße", "STRASSE"),
        ("İpek", "ipek"),
        ("李小龍", "李"),
        ("Oʻktam", "oktam"),
        ("ʿAli", "Ali"),
        ("Ka´imi", "ka'imi"),
        ("𝐀lba", "alba"),
    ],
)
def test_names_of_every_script_are_found(doctor: Client, name: str, q: str) -> None:
    make_patient(doctor, first_name=name)
    assert found(doctor, q) == [name]


def test_numbers_may_be_asked_in_other_digits(doctor: Client) -> None:
    make_patient(doctor, phone_number="0712 345 678")
    assert found(doctor, "٠٧١٢") == ["Amina"]


def test_a_patient_who_matches_twice_comes_once_and_matches_come_in_their_order(doctor: Client) -> None:
    for first, last in (("Anna", "Annan"), ("Zoe", "Anders"), ("Andy", "Anders"), ("Ben", "Zulu"), ("Anna", "Zulu")):
        make_patient(doctor, first_name=first, last_name=last, phone_number="000")
    expected = ["Zoe", "Andy", "Anna", "Anna"]
    assert found(doctor, "an") == expected
    by_page = [[row["first_name"] for row in page] for page in pages(doctor, "/patients?q=an&limit=1")]
    assert [name for page in by_page for name in page] == expected
    assert doctor.get("/patients?q=an&limit=1&total=true").headers["X-Total-Count"] == "4"
    assert all_pages(doctor, "/patients?q=an+z&limit=1") == [2, 5]


def test_a_search_by_the_end_of_a_number_goes_on_over_pages(doctor: Client) -> None:
    for number in ("0712 000 111", "111 222", "555 111", "111 111"):
        make_patient(doctor, phone_number=number)
    sought = {row["phone_number"] for page in pages(doctor, "/patients?q=111&limit=1") for row in page}
    assert sought == {"0712 000 111", "111 222", "555 111", "111 111"}
    assert len(all_pages(doctor, "/patients?q=111&limit=1")) == 4


def test_a_search_and_filters_go_together(doctor: Client, admin: Client) -> None:
    for status in ("admitted", "critical", "critical"):
        make_patient(doctor, status=status)
    admin.delete("/patient/3")
    assert ids(doctor.get("/patients?q=amina&status=critical")) == [2]
    assert ids(doctor.get("/patients?q=amina")) == [1, 2]


def test_a_new_name_or_number_is_found_and_the_old_is_not(doctor: Client) -> None:
    make_patient(doctor)
    doctor.patch("/patient/1", {"first_name": "Zawadi", "phone_number": "0999 111"})
    assert found(doctor, "zawadi wanjiru 0999") == ["Zawadi"]
    assert found(doctor, "amina") == found(doctor, "254") == []


def test_an_archived_patient_is_not_found_until_restored(doctor: Client, admin: Client) -> None:
    make_patient(doctor)
    admin.delete("/patient/1")
    assert found(doctor, "amina") == []
    admin.post("/patient/1/restore")
    assert found(doctor, "amina") == ["Amina"]


def test_the_staff_are_found_by_name(doctor: Client, admin: Client) -> None:
    assert found(doctor, "dor", "/users") == ["Dora"]
    assert found(doctor, "otieno", "/users") == ["Ada", "Dora"]
    doctor.patch(f"/user/{doctor.user['id']}", {"first_name": "Thea"})
    assert found(doctor, "dor", "/users") == []
    assert found(doctor, "thea oti", "/users") == ["Thea"]


def test_an_empty_search_is_none(doctor: Client) -> None:
    make_patient(doctor)
    assert found(doctor, "") == found(doctor, "  ") == ["Amina"]


@pytest.mark.parametrize(
    "q", ["0712 345 678 ext 12", "0712-345678 x12", "amina 0712 345 678", "(0712) 345 wanjiru", "345 678 ami"]
)
def test_a_number_is_found_as_it_is_written_beside_a_name_too(doctor: Client, q: str) -> None:
    make_patient(doctor, phone_number="0712345678 ext 12" if "12" in q[-3:] else "0712345678")
    make_patient(doctor, first_name="Zawadi", phone_number="0733 999 999")
    assert found(doctor, q) == ["Amina"]


def test_arabic_letters_are_found_however_far_they_are_drawn_out(doctor: Client) -> None:
    make_patient(doctor, first_name="محمـــد")
    assert found(doctor, "محمد") == found(doctor, "مـحمد") == ["محمـــد"]


# --- Parameters that are repeated ---


@pytest.mark.parametrize(
    "asked",
    [
        *("status=ongoing&status=critical", "status[]=ongoing&status[]=critical"),
        *("status%5B%5D=ongoing&status%5B%5D=critical", "status=ongoing&status[]=critical"),
    ],
)
def test_a_parameter_is_repeated_with_or_without_brackets_and_both_together_mean_any_of(
    doctor: Client, asked: str
) -> None:
    for status in ("ongoing", "critical", "healed"):
        make_patient(doctor, status=status)
    assert {patient["status"] for patient in doctor.get(f"/patients?{asked}").json} == {"ongoing", "critical"}
    pages = all_pages(doctor, f"/patients?{asked}&limit=1")
    assert len(pages) == 2


@pytest.mark.parametrize(
    "path",
    [
        *("/patients?status[]=ongoing", "/patients?date_of_birth[]=1990-05-31", "/users?role[]=doctor"),
        *("/appointment?user_id[]=me&patient_id[]=1&status[]=pending", "/reports?user_id[]=1&patient_id[]=1"),
    ],
)
def test_every_parameter_that_may_be_repeated_may_have_brackets(doctor: Client, path: str) -> None:
    assert doctor.get(path).status_code == 200


def test_the_audit_takes_brackets_too(admin: Client) -> None:
    assert admin.get("/audit?actor[]=1&kind[]=user&kind=patient").status_code == 200
