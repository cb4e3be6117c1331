"""Hosi Server: every route of the clinic, and the application factory at the foot."""

from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Flask, Response, request
from sqlalchemy import select
from sqlalchemy.orm import joinedload
from werkzeug.datastructures import FileStorage

import cli
import config
from clinic import (
    absences,
    accounts,
    appointments,
    availability,
    listeners,
    merging,
    nodes,
    passwords,
    refusals,
    reports,
    rights,
    sessions,
    startup,
    statistics,
    stores,
    timeline,
    timezone,
)
from clinic import image_links as media
from clinic.about import ABOUT, IMAGE_FILE, LINKS
from clinic.archive import restored
from clinic.collections import APPOINTMENTS, PATIENTS, REPORTS, USERS
from clinic.duplicates import duplicates_of, linked
from clinic.history import listing as audit
from clinic.idempotency import idempotent, made
from clinic.image_links import image_links
from clinic.rights import (
    ADMIN,
    CLINICAL,
    DESK,
    OWN_ACCOUNT,
    OWN_APPOINTMENTS,
    OWN_REPORTS,
    SIGNED_IN,
    caller,
    guard,
    public,
)
from models import Absence, Appointment, Patient, Report, User, find, save
from schemas import (
    AbsenceIn,
    AbsenceMade,
    AbsenceOut,
    AbsenceQuery,
    AbsenceTrial,
    AppointmentIn,
    AppointmentOut,
    AppointmentPatch,
    AppointmentQuery,
    AuditQuery,
    Credentials,
    DuplicateOut,
    ForgottenPassword,
    HistoryOut,
    HoursOut,
    LogoutQuery,
    MergeIn,
    MergeOut,
    Message,
    PasswordChange,
    PasswordResetIn,
    PatientIn,
    PatientOut,
    PatientPatch,
    PatientQuery,
    ReportIn,
    ReportOut,
    ReportPatch,
    ReportQuery,
    SessionOut,
    SlotOut,
    SlotQuery,
    StatisticsOut,
    StatisticsQuery,
    SwapIn,
    SwapOut,
    TimelineAppointmentOut,
    TimelineQuery,
    TimelineReportOut,
    TokensOut,
    UnmergedPatientOut,
    UserIn,
    UserOut,
    UserPatch,
    UserQuery,
    WeekIn,
)
from server import database, errors, fast_reads, limits, logs, mail, metrics, standby, system, web
from server.database import db
from server.endpoint import StreamedList, WrittenRecord, contract
from server.limits import limited
from server.openapi import related_link, version_header

api = Blueprint("api", __name__)
Files = list[FileStorage]

# --- Accounts ---


@api.post("/signup")
@limited("RATELIMIT_SIGNUP")
@public
@contract(201, at="/user/{id}", tag="Accounts", errors=(401, 403, 409), tokens=("", "access_token"))
def signup(json: UserIn) -> UserOut:
    """Register a member of the staff."""
    return UserOut.of(accounts.register(json))


@api.post("/login")
@limited("RATELIMIT_LOGIN")
@public
@contract(tag="Accounts", errors=(401, 403))
def login(json: Credentials) -> TokensOut:
    """Sign in with email and password."""
    return accounts.sign_in(json.email, json.password)


@api.post("/refresh")
@limited("RATELIMIT_REFRESH")
@public
@contract(tag="Accounts", errors=(401,), tokens=("refresh_token",))
def refresh() -> TokensOut:
    """Get a new pair of tokens for a refresh token."""
    return sessions.refresh_session()


@api.post("/logout")
@guard(SIGNED_IN, once=True)
@contract(tag="Accounts")
def logout(query: LogoutQuery) -> Message:
    """Sign out here, or everywhere."""
    sessions.log_out(caller(), query.everywhere)
    return Message(msg="You are signed out everywhere." if query.everywhere else "You are signed out.")


@api.get("/me")
@guard(SIGNED_IN)
@contract(tag="Accounts")
def get_me() -> WrittenRecord[UserOut]:
    """Get the signed-in user."""
    return USERS.get(caller().id)


@api.post("/me/password")
@guard(SIGNED_IN, signs_out="caller")
@contract(tag="Accounts", errors=(409, 429))
def change_my_password(json: PasswordChange) -> TokensOut:
    """Change your password and end every other login of yours."""
    return accounts.change_own_password(json.current_password, json.new_password)


@api.get("/me/sessions")
@guard(SIGNED_IN)
@contract(tag="Accounts")
def list_my_sessions() -> list[SessionOut]:
    """List your logins."""
    return sessions.list_sessions(caller())


@api.delete("/me/sessions/<id:session_id>")
@guard(SIGNED_IN, signs_out="caller")
@contract(tag="Accounts")
def end_my_session(session_id: int) -> Message:
    """End one of your logins."""
    if not sessions.end_sessions(caller().id, session_id):
        raise errors.NotFound(f"You have no login {session_id}.")
    return Message(msg="That login has ended.")


@api.post("/password/forgot")
@limited("RATELIMIT_PASSWORD_FORGOT")
@public
@contract(tag="Accounts")
def forgot_password(json: ForgottenPassword) -> Message:
    """Ask for a link to set a new password."""
    db.session.execute(select(1))  # 503 if the database is away: the mail is sent after the answer
    mail.send_reset_link(accounts.reset_link_to_mail, json.email)
    return Message(msg="If there is an account with this email, a link is on its way to it.")


@api.post("/password/reset")
@limited("RATELIMIT_PASSWORD_RESET")
@public
@contract(tag="Accounts")
def reset_password(json: PasswordResetIn) -> Message:
    """Set a new password with the token of a link."""
    accounts.reset_password(json.token, json.password)
    return Message(msg="Your password is set. Please sign in.")


# --- Staff ---


@api.get("/users")
@guard(SIGNED_IN)
@contract(tag="Staff")
def list_users(query: UserQuery) -> StreamedList[UserOut]:
    """List the staff: all, a page, or a search."""
    return USERS.answer_to(query)


@api.get("/user/<id:user_id>")
@guard(SIGNED_IN, reads=USERS.reading)
@contract(tag="Staff")
def get_user(user_id: int) -> WrittenRecord[UserOut]:
    """Get a member of the staff."""
    return USERS.get(user_id)


@api.patch("/user/<id:user_id>")
@guard(OWN_ACCOUNT, signs_out="user_id")
@contract(tag="Staff", errors=(409, 412))
def update_user(user_id: int, json: UserPatch) -> UserOut:
    """Change a member of the staff."""
    user = rights.editable(User, user_id)
    accounts.change(user, json.sent_fields())
    return UserOut.of(save(user))


@api.delete("/user/<id:user_id>")
@guard(ADMIN, signs_out="user_id")
@contract(tag="Staff", errors=(409, 412))
def delete_user(user_id: int) -> Message:
    """Archive a member of the staff."""
    rights.editable(User, user_id).archive()
    return Message(msg=f"User {user_id} is archived.")


@api.post("/user/<id:user_id>/restore")
@guard(ADMIN, signs_out="user_id")
@contract(tag="Staff", errors=(409,))
def restore_user(user_id: int) -> UserOut:
    """Restore an archived member of the staff."""
    return UserOut.of(restored(User, user_id))


@api.get("/user/<id:user_id>/history")
@guard(OWN_ACCOUNT)
@contract(tag="Staff")
def get_user_history(user_id: int) -> list[HistoryOut]:
    """List the changes of a member of the staff."""
    return audit.history(rights.with_history(User, user_id))


# --- The desk ---

VERSIONED = {"headers": {"ETag": version_header()}}


@api.get("/user/<id:user_id>/hours")
@guard(SIGNED_IN)
@contract(tag="Desk", operation=VERSIONED)
def get_hours(user_id: int) -> StreamedList[HoursOut]:
    """Get the working hours of a member of the staff."""
    return availability.hours_of(user_id)


@api.put("/user/<id:user_id>/hours")
@guard(DESK)
@contract(tag="Desk", errors=(409, 412), operation=VERSIONED)
def set_hours(user_id: int, json: WeekIn) -> StreamedList[HoursOut]:
    """Replace the working hours of a member of the staff. Without hours they can be booked at any time."""
    return availability.set_hours(user_id, json)


@api.get("/user/<id:user_id>/absences")
@guard(SIGNED_IN)
@contract(tag="Desk")
def list_absences(user_id: int) -> list[AbsenceOut]:
    """List the absences of a member of the staff."""
    return absences.absences_of(user_id)


@api.post("/user/<id:user_id>/absences")
@guard(DESK)
@contract(201, at="/user/{user_id}/absences/{id}", tag="Desk", errors=(409,), others={200: AbsenceTrial})
@idempotent(Absence, absences.made_before)
def create_absence(user_id: int, json: AbsenceIn, query: AbsenceQuery) -> AbsenceMade | Response:
    """Enter an absence, and hand over or cancel the appointments in its way."""
    return absences.create(user_id, json, query.dry_run)


@api.get("/user/<id:user_id>/absences/<id:absence_id>")
@guard(SIGNED_IN)
@contract(tag="Desk")
def get_absence(user_id: int, absence_id: int) -> AbsenceOut:
    """Get an absence."""
    return absences.absence_of(user_id, absence_id)


@api.delete("/user/<id:user_id>/absences/<id:absence_id>")
@guard(DESK)
@contract(tag="Desk", errors=(409, 412))
def delete_absence(user_id: int, absence_id: int) -> Message:
    """Archive an absence. The appointments that it moved stay where they are."""
    absences.archive(user_id, absence_id)
    return Message(msg=f"Absence {absence_id} is archived.")


@api.get("/slots")
@guard(SIGNED_IN)
@contract(tag="Desk")
def list_free_slots(query: SlotQuery) -> list[SlotOut]:
    """List the free slots of doctors, the earliest first."""
    return availability.free_slots(query)


# --- Patients ---

RELATED = {"headers": {"Link": related_link("The patients who may be the same person, five at most")}}


@api.get("/patients")
@guard(SIGNED_IN)
@contract(tag="Patients")
def list_patients(query: PatientQuery) -> StreamedList[PatientOut]:
    """List patients: all, a page, or a search."""
    return PATIENTS.answer_to(query)


@api.post("/patients")
@guard(SIGNED_IN)
@contract(201, at="/patient/{id}", tag="Patients", errors=(403, 409), operation=RELATED)
@idempotent(Patient, lambda made: PatientOut.of(linked(find(Patient, made))))
def create_patient(json: PatientIn) -> PatientOut:
    """Create a patient."""
    patient = save(rights.create(Patient, json.model_dump()))
    made(patient)
    return PatientOut.of(linked(patient))


@api.get("/patient/<id:patient_id>")
@guard(SIGNED_IN, reads=PATIENTS.reading)
@contract(tag="Patients")
def get_patient(patient_id: int) -> WrittenRecord[PatientOut]:
    """Get a patient."""
    return PATIENTS.get(patient_id)


@api.get("/patient/<id:patient_id>/duplicates")
@guard(SIGNED_IN)
@contract(tag="Patients")
def list_duplicates(patient_id: int) -> list[DuplicateOut]:
    """List the patients who may be the same person, each with the reasons."""
    return duplicates_of(find(Patient, patient_id))


@api.get("/patient/<id:patient_id>/timeline")
@guard(SIGNED_IN)
@contract(tag="Patients")
def list_timeline(patient_id: int, query: TimelineQuery) -> StreamedList[TimelineAppointmentOut | TimelineReportOut]:
    """List the appointments and reports of a patient, the newest first: all, or a page."""
    return timeline.of(patient_id, query)


@api.patch("/patient/<id:patient_id>")
@guard(SIGNED_IN)
@contract(tag="Patients", errors=(403, 409, 412))
def update_patient(patient_id: int, json: PatientPatch) -> PatientOut:
    """Change a patient."""
    patient = rights.editable(Patient, patient_id)
    rights.change(patient, json.sent_fields())
    return PatientOut.of(save(patient))


@api.delete("/patient/<id:patient_id>")
@guard(ADMIN)
@contract(tag="Patients", errors=(409, 412))
def delete_patient(patient_id: int) -> Message:
    """Archive a patient with their reports and appointments."""
    rights.editable(Patient, patient_id).archive()
    return Message(msg=f"Patient {patient_id} is archived.")


@api.post("/patient/<id:patient_id>/restore")
@guard(ADMIN)
@contract(tag="Patients", errors=(409,))
def restore_patient(patient_id: int) -> PatientOut | UnmergedPatientOut:
    """Restore an archived patient with what was archived with them, or undo their merge."""
    return merging.restored_patient(patient_id)


@api.post("/patient/<id:patient_id>/merge")
@guard(ADMIN)
@contract(tag="Patients", errors=(409, 412))
@idempotent(Patient, merging.shown)
def merge_patient(patient_id: int, json: MergeIn) -> MergeOut:
    """Merge a patient into another who is the same person."""
    return merging.merge(patient_id, json.into)


@api.get("/patient/<id:patient_id>/history")
@guard(CLINICAL)
@contract(tag="Patients")
def get_patient_history(patient_id: int) -> list[HistoryOut]:
    """List the changes of a patient."""
    return audit.history(rights.with_history(Patient, patient_id))


# --- Appointments ---

with_names = (joinedload(Appointment.patient), joinedload(Appointment.doctor))


@api.get("/appointment")
@guard(SIGNED_IN)
@contract(tag="Appointments")
def list_appointments(query: AppointmentQuery) -> StreamedList[AppointmentOut]:
    """List appointments with names: all, a page, or by doctor, patient or time."""
    return APPOINTMENTS.answer_to(query)


@api.post("/appointment")
@guard(OWN_APPOINTMENTS)
@contract(201, at="/appointment/{id}", tag="Appointments", errors=(409,))
@idempotent(Appointment, lambda made: AppointmentOut.of(find(Appointment, made, *with_names)))
def create_appointment(json: AppointmentIn) -> AppointmentOut:
    """Book an appointment."""
    appointment = save(rights.create(Appointment, json.model_dump()))
    made(appointment)
    return AppointmentOut.of(appointment)


@api.get("/appointment/<id:appointment_id>")
@guard(SIGNED_IN, reads=APPOINTMENTS.reading)
@contract(tag="Appointments")
def get_appointment(appointment_id: int) -> WrittenRecord[AppointmentOut]:
    """Get an appointment with names."""
    return APPOINTMENTS.get(appointment_id)


@api.patch("/appointment/<id:appointment_id>")
@guard(OWN_APPOINTMENTS)
@contract(tag="Appointments", errors=(409, 412))
def update_appointment(appointment_id: int, json: AppointmentPatch) -> AppointmentOut:
    """Change or move an appointment."""
    appointment = rights.editable(Appointment, appointment_id)
    rights.change(appointment, json.sent_fields())
    return AppointmentOut.of(save(appointment))


@api.delete("/appointment/<id:appointment_id>")
@guard(OWN_APPOINTMENTS)
@contract(tag="Appointments", errors=(409, 412))
def delete_appointment(appointment_id: int) -> Message:
    """Archive an appointment."""
    rights.editable(Appointment, appointment_id).archive()
    return Message(msg=f"Appointment {appointment_id} is archived.")


@api.post("/appointment/<id:appointment_id>/restore")
@guard(ADMIN)
@contract(tag="Appointments", errors=(409,))
def restore_appointment(appointment_id: int) -> AppointmentOut:
    """Restore an archived appointment."""
    return AppointmentOut.of(restored(Appointment, appointment_id))


@api.post("/appointment/swap")
@guard(OWN_APPOINTMENTS)
@contract(tag="Appointments", errors=(404, 409))
def swap_appointments(json: SwapIn) -> SwapOut:
    """Give each of two appointments the time of the other, in one step."""
    first, second = appointments.swap(json.first, json.second)
    return SwapOut(first=AppointmentOut.of(first), second=AppointmentOut.of(second))


@api.get("/appointment/<id:appointment_id>/history")
@guard(OWN_APPOINTMENTS)
@contract(tag="Appointments")
def get_appointment_history(appointment_id: int) -> list[HistoryOut]:
    """List the changes of an appointment."""
    return audit.history(rights.with_history(Appointment, appointment_id))


# --- Reports ---


@api.get("/reports")
@guard(CLINICAL)
@contract(tag="Reports")
def list_reports(query: ReportQuery) -> StreamedList[ReportOut]:
    """List reports with names and images: all, a page, or by doctor, patient or time."""
    return REPORTS.answer_to(query, image_links())


@api.post("/reports")
@guard(OWN_REPORTS)
@contract(201, at="/reports/{id}", tag="Reports", errors=(409,))
@idempotent(Report, reports.shown, lease=True)
def create_report(form: ReportIn, images: Files) -> ReportOut:
    """File a report: a diagnosis, images, or both."""
    return reports.file(form.model_dump(), images)


@api.get("/reports/<id:report_id>")
@guard(CLINICAL, reads=REPORTS.reading)
@contract(tag="Reports")
def get_report(report_id: int) -> WrittenRecord[ReportOut]:
    """Get a report with names and images."""
    return REPORTS.get(report_id, image_links())


@api.patch("/reports/<id:report_id>")
@guard(OWN_REPORTS)
@contract(tag="Reports", errors=(409, 412))
def update_report(report_id: int, form: ReportPatch, images: Files) -> ReportOut:
    """Change a report, and add images or replace them."""
    return reports.change(report_id, form.sent_fields(), images)


@api.delete("/reports/<id:report_id>")
@guard(OWN_REPORTS)
@contract(tag="Reports", errors=(409, 412))
def delete_report(report_id: int) -> Message:
    """Archive a report with its images."""
    rights.editable(Report, report_id).archive()
    return Message(msg=f"Report {report_id} is archived.")


@api.delete("/reports/<id:report_id>/images/<id:image_id>")
@guard(OWN_REPORTS)
@contract(tag="Reports", errors=(409, 412, 422))
def delete_report_image(report_id: int, image_id: int) -> Message:
    """Archive an image of a report, the last one only if the report has a diagnosis."""
    report = rights.editable(Report, report_id, *reports.with_images)
    report.remove_image(image_id)
    save(report)
    return Message(msg=f"Image {image_id} of report {report_id} is archived.")


@api.post("/reports/<id:report_id>/restore")
@guard(ADMIN)
@contract(tag="Reports", errors=(409,))
def restore_report(report_id: int) -> ReportOut:
    """Restore an archived report."""
    return ReportOut.of(restored(Report, report_id, *reports.with_images), image_links())


@api.get("/reports/<id:report_id>/history")
@guard(OWN_REPORTS)
@contract(tag="Reports")
def get_report_history(report_id: int) -> list[HistoryOut]:
    """List the changes of a report and its images."""
    return audit.history(rights.with_history(Report, report_id))


# --- Statistics, history of all, and local images ---


@api.get("/statistics")
@guard(SIGNED_IN)
@contract(tag="Statistics")
def get_statistics(query: StatisticsQuery) -> StatisticsOut:
    """Count patients, appointments and reports by day, week or month."""
    return statistics.over(query)


@api.get("/audit")
@guard(ADMIN)
@contract(tag="Audit")
def list_audit(query: AuditQuery) -> StreamedList[HistoryOut]:
    """List the changes of all records and the sign-ins, the newest first."""
    return audit.search(query)


@api.get("/media/<key>")
@public  # the signature of the link stands for the token
@contract(tag="Reports", errors=(403, 502), operation=IMAGE_FILE)
def media_file(key: str) -> Response:
    """Get an image on local disk or S3 by its signed link, which expires."""
    return media.respond(key, request.args)


# --- The application ---


def create_app(settings: dict[str, Any] | None = None, blueprints: Sequence[Blueprint] = (api,)) -> Flask:
    """Return the application. `settings` win over the environment, and FLASK_ENV "testing" in them shuts it out.

    Raises RuntimeError for a view that does not say who may call it, or what it takes and returns.
    Raises ConfigError for a setting that is missing or wrong.
    """
    setting = config.read_settings(settings)
    logs.set_up(setting["LOG_LEVEL"], setting["LOG_FORMAT"])
    app = Flask(__name__, instance_path=str(setting["INSTANCE_PATH"]), static_folder="static")
    app.config.update(setting)
    for part in (errors, refusals, database, fast_reads, startup, passwords, sessions, limits, stores, cli, web):
        part.init_app(app)
    standby.init_app(app)
    listeners.register()
    nodes.init_app(app)
    metrics.show_chores(setting["INSTANCE_PATH"], cli.CHORES)
    for blueprint in blueprints:
        app.register_blueprint(blueprint)
    system.init_app(app, ABOUT, LINKS, accounts.who_may_sign_up, timezone.check_timezone, stores.origins(app))
    return app


if __name__ == "__main__":
    application = create_app()
    with application.app_context():
        startup.stop_on_wrong_settings()
    application.run(application.config["HOST"], application.config["PORT"], threaded=True)
