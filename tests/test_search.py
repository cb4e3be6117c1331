"""A patient is found as people say and write names, phone numbers and birth dates."""

import pytest
from client import Client, all_pages, assert_refused, ids, run_cli
from factories import make_patient
from flask import Flask
from phonenumbers import (
    SUPPORTED_REGIONS,
    PhoneNumberFormat,
    PhoneNumberType,
    example_number_for_type,
    format_number,
    parse,
)
from sql import sql

from clinic.words import words_of_person
from server import phones

NAMED = {"first_name": "Amina", "last_name": "Wanjiru"}


def found(client: Client, q: str) -> list[int]:
    return ids(client.get("/patients", query_string={"q": q}))


@pytest.fixture
def in_kenya(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.config, "PHONE_REGION", "KE")


# --- Phone numbers: taken in ---


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("+254 712 345 678", "+254 712 345 678"),
        ("  0712   345\t678 ", "0712 345 678"),
        ("\u202a+254\u00a0712\u2011345\u2011678\u202c", "+254 712-345-678"),
        ("0712\u200b345\u00ad678", "0712345678"),
        ("0712–345—678", "0712-345-678"),
        ("٠٧١٢ ٣٤٥ ٦٧٨", "0712 345 678"),
        ("०७१२ ३४५ ६७८", "0712 345 678"),
        ("＋２５４（７１２）３４５－６７８", "+254(712)345-678"),
        ("tel:+254712345678", "+254712345678"),
        ("TEL: 0712 345 678", "0712 345 678"),
        ("tel:+1-201-555-0123;ext=12", "+1-201-555-0123 x12"),
        ("0712 345 678 Ext. 12", "0712 345 678 ext. 12"),
        ("0712 345 678 EXT 12", "0712 345 678 ext 12"),
        ("0712 345 678 extension 12", "0712 345 678 ext 12"),
        ("0712 345 678X12", "0712 345 678x12"),
        ("0712 345 678 #12", "0712 345 678 x12"),
        ("00254 712 345 678", "00254 712 345 678"),
        ("+44 (0)20 7946 0958", "+44 (0)20 7946 0958"),
        ("(+44) 20 7946 0958", "(+44) 20 7946 0958"),
        ("01.23.45.67.00", "01.23.45.67.00"),
        ("911", "911"),
    ],
)
def test_a_phone_number_is_kept_as_it_is_written_but_clean(doctor: Client, sent: str, kept: str) -> None:
    patient = make_patient(doctor, phone_number=sent)
    assert patient["phone_number"] == kept
    assert doctor.patch("/patient/1", {"phone_number": kept}).json["version"] == 1


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ("254712345678.0", "Excel"),
        ("2.54712E+11", "Excel"),
        ("---1", "Please begin the phone number"),
        ("12", "3 digits"),
        ("0712345678, 0733345678", "one phone number"),
        ("0712345678; 0733345678", "one phone number"),
        ("0712345678، 0733345678", "one phone number"),
        ("0712345678/0733345678", "one phone number"),
        ("call me", "Please write the phone number as +254 712 345 678."),
        ("+", "Please write the phone number as +254 712 345 678."),
        ("0712 345 678 x", "Please write the phone number as +254 712 345 678."),
        ("1" * 50, "one phone number"),
    ],
)
def test_what_is_no_phone_number_is_refused_with_the_reason(doctor: Client, sent: str, reason: str) -> None:
    refused = doctor.post("/patients", {**NAMED, "phone_number": sent})
    assert_refused(refused, 422, "phone_number")
    assert reason in refused.json["errors"]["phone_number"][0]
    make_patient(doctor)
    assert_refused(doctor.patch("/patient/1", {"phone_number": sent}), 422, "phone_number")


@pytest.mark.parametrize("old", ["254712345678.0", "---1", "0712345678/0733345678"])
def test_a_number_that_an_older_version_took_may_be_sent_back(app: Flask, doctor: Client, old: str) -> None:
    make_patient(doctor)
    sql(app, "UPDATE patients SET phone_number = :old", old=old)
    whole = doctor.get("/patient/1").json
    changed = doctor.patch("/patient/1", {**whole, "diagnosis": "Malaria"})
    assert (changed.status_code, changed.json["phone_number"]) == (200, old)
    assert_refused(doctor.patch("/patient/1", {"phone_number": f"2{old}"}), 422, "phone_number")


# --- Phone numbers: found ---

INTERNATIONAL = "+254 712 345 678"


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        *((INTERNATIONAL, q) for q in (
            "0712 345 678", "0712345678", "0712 345", "0712", "+254712345678", "254712", "00254712345678", "00254 712",
            "712345678", "345 678", "5678", "(0712) 345-678", "٠٧١٢ ٣٤٥ ٦٧٨", "０７１２３４５６７８", "0712‑345‑678",
            "tel:+254712345678", "amina 0712 345 678", "+254 (0)712 345 678",
        )),
        ("0733 123 456", "+254733123456"),
        ("0733 123 456", "+254 733"),
        ("0733 123 456", "00254 733 123 456"),
        ("0733 123 456", "254733"),
        ("0733123456", "0733 123 456"),
        ("00254 733 123 456", "0733 123 456"),
        ("00254 733 123 456", "00254733123456"),
        ("254733123456", "0733 123"),
        ("+254 0733 123 456", "+254733123456"),
        ("+44 (0)20 7946 0958", "+442079460958"),
        ("+44 (0)20 7946 0958", "+44 (0)20 7946"),
        ("+44 (0)20 7946 0958", "0044 20 7946 0958"),
        ("+44 20 7946 0958", "020 7946"),
        ("+44 20 7946 0958", "+44 (0)20 7946 0958"),
        ("+86 138 1234 5678", "138 1234"),
        ("+7 912 345 67 89", "8 912 345 67 89"),
        ("+1 415 555 2671", "(415) 555-2671"),
        ("+39 06 698 12345", "06 698"),
        ("911", "911"),
        ("+999 123 456", "999123"),
        ("+254 712 345 6789", "0712 345 6789"),
        ("+254 712 345 6789", "+2547123456789"),
        ("0712 345 678 Ext. 12", "0712345678 x12"),
        ("0712 345 678 Ext. 12", "+254712345678"),
        ("0712 345 678 Ext. 12", "0712345678"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("in_kenya")
def test_a_number_is_found_in_its_national_and_its_international_form(doctor: Client, stored: str, asked: str) -> None:
    patient = make_patient(doctor, phone_number=stored)
    make_patient(doctor, phone_number="+254 20 999 9999")
    assert found(doctor, asked) == [patient["id"]]


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        (INTERNATIONAL, "0712 345 678"),
        ("0712 345 678", "+254 712 345 678"),
        ("0712 345 678", "00254 712 345 678"),
        ("00254 712 345 678", "0712 345 678"),
        ("0712 345 678", "0712 345"),
        ("0712 345 678", "345 678"),
        ("+254 712 345 678", "0712 34"),
        ("911", "911"),
    ],
)
def test_without_a_region_a_number_is_found_as_written_and_by_its_last_eight_digits(
    doctor: Client, stored: str, asked: str
) -> None:
    patient = make_patient(doctor, phone_number=stored)
    make_patient(doctor, phone_number="0733 999 999")
    assert found(doctor, asked) == [patient["id"]]


@pytest.mark.usefixtures("in_kenya")
def test_with_a_region_a_number_of_another_country_is_another_number(doctor: Client) -> None:
    make_patient(doctor, phone_number="+255 712 345 678")
    assert found(doctor, "+254 712 345 678") == []


@pytest.mark.usefixtures("in_kenya")
def test_a_number_found_in_two_ways_goes_on_over_pages(doctor: Client) -> None:
    for number in ("00254 712 000 111", "0025 471", "+254 712 000 222", "+1 212 452 0074"):
        make_patient(doctor, phone_number=number)
    assert sorted(all_pages(doctor, "/patients?q=00254&limit=1")) == [1, 2, 3]
    assert doctor.get("/patients?q=00254&limit=1&total=true").headers["X-Total-Count"] == "3"


def test_numbers_are_found_by_a_new_region_once_they_are_indexed_again(
    app: Flask, doctor: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_patient(doctor, phone_number="0712 345 678")
    monkeypatch.setitem(app.config, "PHONE_REGION", "KE")
    assert found(doctor, "254712") == []
    before = sql(app, "SELECT count(*) FROM audit_entries")
    code, output = run_cli(app, "reindex")
    assert code == 0
    assert "1 patients indexed" in output
    assert found(doctor, "254712") == found(doctor, "amina") == [1]
    assert sql(app, "SELECT count(*) FROM audit_entries") == before
    assert doctor.get("/patient/1").json["version"] == 1


KINDS = (PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE, PhoneNumberType.TOLL_FREE)
EXAMPLES = [
    number
    for region in sorted(SUPPORTED_REGIONS)
    for kind in KINDS
    if (number := example_number_for_type(region, kind))
]


def test_most_numbers_are_read_without_the_parser_and_as_it_reads_them() -> None:
    """The parser takes ten times as long."""
    quick = 0
    for number in EXAMPLES:
        international = format_number(number, PhoneNumberFormat.E164)[1:]
        if read := phones._of_country_code(international):
            quick += 1
            national = format_number(parse(f"+{international}"), PhoneNumberFormat.NATIONAL)
            assert read == (international, phones.digits_of(national))
    assert quick > 0.9 * len(EXAMPLES) > 600


# --- Names ---


@pytest.mark.parametrize(
    ("first_name", "last_name", "asked"),
    [
        *(("小明", "王", q) for q in ("王小明", "王", "小明", "王 小明", "小明王")),
        *(("王小明", "-", q) for q in ("王小明", "王", "小明", "王小")),
        *(("민준", "김", q) for q in ("김민준", "김", "민준", "김 민준")),
        *(("김민준", "-", q) for q in ("김민준", "김", "민준")),
        *(("太郎", "山田", q) for q in ("山田太郎", "山田", "太郎")),
        *(("-", "山田太郎", q) for q in ("山田太郎", "山田", "太郎", "山田 太郎")),
        *(("สมชาย", "ใจดี", q) for q in ("สมชายใจดี", "สมชาย", "ใจดี", "สมชาย ใจดี")),
        *(("สมชายใจดี", "-", q) for q in ("สมชายใจดี", "สมชาย", "ใจดี")),
        *(("Omar", "Al-Hassan", q) for q in ("alhassan", "al hassan", "al-hassan", "hassan", "omar alhassan")),
        *(("Omar", "Alhassan", q) for q in ("al-hassan", "alhassan", "hassan")),
        *(("Juan", "Dela Cruz", q) for q in ("delacruz", "dela cruz", "cruz", "juan delacruz")),
        *(("Juan", "de la Cruz", q) for q in ("delacruz", "lacruz", "de la cruz", "dela cruz")),
        *(("Ann", "Smith-Jones", q) for q in ("smithjones", "smith jones", "smith-jones", "jones")),
        *(("Anne Marie", "Roy", q) for q in ("annemarie", "anne-marie", "anne marie", "marie")),
        *(("Anne-Marie", "Roy", q) for q in ("annemarie", "anne marie")),
        *(("Pat", "O'Brien", q) for q in ("obrien", "o brien", "o'brien", "o’brien", "o＇brien", "O Brien", "brien")),
        *(("Pat", "O Brien", q) for q in ("obrien", "o'brien", "o brien")),
        *(("Pat", "O＇Brien", q) for q in ("obrien", "o'brien", "o brien")),
        *(("Lia", "D'Souza", q) for q in ("dsouza", "d souza", "d'souza")),
        *(("Ian", name, q) for name in ("McDonald", "Mcdonald", "MCDONALD", "Mc Donald")
          for q in ("mcdonald", "mc donald", "McDonald")),
        *(("Ian", "MacDonald", q) for q in ("macdonald", "mac donald")),
        *(("Jürgen", "Müller", q) for q in ("Mueller", "Müller", "muller", "juergen mueller", "MUELLER")),
        *(("Juergen", "Mueller", q) for q in ("Müller", "muller", "mueller", "jürgen")),
        *(("Jo\u0308rg", "Groß", q) for q in ("joerg", "jörg", "gross", "groß")),
        *(("Jo", "Gross", q) for q in ("groß", "gross")),
        *(("Søren", "Ødegård", q) for q in ("soeren", "soren", "søren", "oedegaard", "odegard")),
        *(("فاطمة", "حسن", q) for q in ("فاطمه", "فاطمة")),
        *(("فاطمه", "حسن", q) for q in ("فاطمه", "فاطمة")),
        *((name, "حسن", q) for name in ("أحمد", "احمد") for q in ("أحمد", "احمد", "إحمد", "آحمد", "ٱحمد")),
        *((name, "حسن", q) for name in ("ليلى", "ليلي", "لیلی") for q in ("ليلى", "ليلي", "لیلی")),
        *((name, "حسن", q) for name in ("عبد الله", "عبدالله") for q in ("عبدالله", "عبد الله")),
        *((name, "Bello", q) for name in ("Abdul Rahman", "Abdulrahman") for q in ("abdulrahman", "abdul rahman")),
    ],
)  # fmt: skip
def test_a_name_is_found_together_and_apart(doctor: Client, first_name: str, last_name: str, asked: str) -> None:
    patient = make_patient(doctor, first_name=first_name, last_name=last_name, phone_number="000")
    make_patient(doctor, first_name="Zoe", last_name="Zulu", phone_number="000")
    assert found(doctor, asked) == [patient["id"]]


@pytest.mark.parametrize(
    ("first_name", "last_name", "asked"),
    [
        ("Samuel", "Bauer", "samul"),
        ("Samuel", "Bauer", "baur"),
        ("Joe", "Monroe", "monro x"),
        ("Ann", "Smith-Jones", "smithann"),
        ("Ann", "Smith-Jones", "ithjones"),
        ("Alexander", "Elizabeth", "exander"),
        ("Alexander", "Elizabeth", "izabeth"),
        ("小明", "王", "明"),
        ("王小明", "李", "小明"),
        ("Pat", "O'Brien", "rien"),
    ],
)
def test_and_by_no_other_part_of_it(doctor: Client, first_name: str, last_name: str, asked: str) -> None:
    make_patient(doctor, first_name=first_name, last_name=last_name, phone_number="000")
    assert found(doctor, asked) == []


def test_the_staff_are_found_so_too(admin: Client, doctor: Client) -> None:
    admin.patch(f"/user/{doctor.user['id']}", {"first_name": "Jürgen", "last_name": "Al-Hassan"})
    for q in ("alhassan", "juergen", "jurgen al hassan"):
        assert ids(admin.get("/users", query_string={"q": q})) == [doctor.user["id"]]


def test_a_long_name_has_few_words() -> None:
    longest = " ".join("abcdefghij" * 5)[:100]
    assert len(words_of_person(longest, longest)) <= 20
    assert len(words_of_person("ส" * 100, "-")) <= 20
    assert len(words_of_person("Anne Marie", "Smith-Jones")) == 6


# --- Birth dates ---


@pytest.mark.parametrize("q", ["1980-05-31", "1980-5-31", "31.5.1980", "31/05/1980", "5/31/1980", "١٩٨٠-٠٥-٣١"])
def test_a_date_in_a_search_is_a_birth_date(doctor: Client, q: str) -> None:
    make_patient(doctor, date_of_birth="1980-05-31")
    make_patient(doctor, first_name="Zawadi", date_of_birth="1980-05-31")
    make_patient(doctor, date_of_birth="1980-06-01")
    make_patient(doctor, phone_number="0712 1980 0531")
    assert sorted(found(doctor, q)) == [1, 2]
    assert found(doctor, f"amina {q}") == found(doctor, f"{q} amina wanjiru") == [1]
    assert found(doctor, f"zebra {q}") == []


def test_a_date_of_two_readings_is_found_by_either(doctor: Client) -> None:
    for day in ("1980-03-05", "1980-05-03", "1980-05-04"):
        make_patient(doctor, date_of_birth=day)
    assert sorted(found(doctor, "3/5/1980")) == [1, 2]
    assert sorted(all_pages(doctor, "/patients?q=3/5/1980&limit=1")) == [1, 2]


def test_what_is_no_date_is_read_as_a_number(doctor: Client) -> None:
    make_patient(doctor, phone_number="1980-13-01")
    assert found(doctor, "1980-13-01") == [1]


def test_a_birth_date_that_was_corrected_is_found(doctor: Client) -> None:
    make_patient(doctor, date_of_birth="1980-05-31")
    doctor.patch("/patient/1", {"date_of_birth": "1981-05-31"})
    assert found(doctor, "1980-05-31") == []
    assert found(doctor, "1981-05-31") == [1]


def test_patients_are_filtered_by_their_birth_date(doctor: Client) -> None:
    for day in ("1980-01-01", "1980-01-01", "1980-01-02", None):
        make_patient(doctor, date_of_birth=day, status="admitted" if day else "critical")
    doctor.patch("/patient/2", {"status": "healed", "first_name": "Zawadi"})
    assert ids(doctor.get("/patients?date_of_birth=1980-01-01")) == [1, 2]
    assert ids(doctor.get("/patients?date_of_birth=1980-01-01&date_of_birth=1980-01-02")) == [1, 2, 3]
    assert all_pages(doctor, "/patients?date_of_birth=1980-01-01&sort=-last_name&limit=1") == [2, 1]
    assert ids(doctor.get("/patients?date_of_birth=1980-01-01&status=healed")) == [2]
    assert ids(doctor.get("/patients?date_of_birth=1980-01-01&q=zawadi")) == [2]
    assert ids(doctor.get("/patients?date_of_birth=1980-01-01&date_of_birth=1980-01-02&q=amina")) == [1, 3]
    assert doctor.get("/patients?date_of_birth=1980-01-01&limit=1&total=true").headers["X-Total-Count"] == "2"
    assert_refused(doctor.get("/patients?date_of_birth=tomorrow"), 422, "date_of_birth")
