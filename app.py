"""Hosi Server: every route, and the application factory at the foot."""

import logging
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Flask, Request, Response, abort, current_app, redirect, request, send_from_directory
from flask.sessions import NullSession, SessionInterface
from flask_cors import CORS
from sqlalchemy import select
from sqlalchemy.orm import joinedload, selectinload
from werkzeug.datastructures import FileStorage
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import IntegerConverter

import cli
import config
from clinic import accounts, listeners, passwords, rights, sessions
from clinic import images as media
from clinic.archive import restored
from clinic.collections import APPOINTMENTS, PATIENTS, REPORTS, USERS
from clinic.history import listing as audit
from clinic.idempotency import idempotent, made
from clinic.images import uploaded
from clinic.rights import caller, guard
from models import Appointment, LoginSession, Patient, Report, User, find, save
from schemas import (
    AppointmentIn,
    AppointmentOut,
    AppointmentPatch,
    AppointmentQuery,
    AuditQuery,
    Credentials,
    ForgottenPassword,
    Health,
    HistoryOut,
    LogoutQuery,
    Message,
    PasswordChange,
    PasswordResetIn,
    PatientIn,
    PatientOut,
    PatientPatch,
    PatientQuery,
    Readiness,
    ReportIn,
    ReportOut,
    ReportPatch,
    ReportQuery,
    SessionOut,
    TokensOut,
    UserIn,
    UserOut,
    UserPatch,
    UserQuery,
    Welcome,
)
from server import database, errors, fast_reads, limits, mail, openapi
from server.database import db, in_transaction, outside_transaction
from server.endpoint import Many, contract
from server.limits import limiter
from server.multipart import JSON_LIMIT, APIRequest

VERSION = "1.0.0"
api = Blueprint("api", __name__)
Files = list[FileStorage]

# --- Accounts ---


@api.post("/signup")
@limiter.limit("30 per minute")
@contract(201, at="/user/{id}")
def signup(json: UserIn) -> UserOut:
    """Register a member of the staff."""
    return UserOut.of(accounts.register(json))


@api.post("/login")
@limiter.limit("60 per minute")
@contract()
def login(json: Credentials) -> TokensOut:
    """Sign in with email and password."""
    return accounts.sign_in(json.email, json.password)


@api.post("/refresh")
@limiter.limit("300 per minute")  # a whole clinic's screens may share one address
@contract()
def refresh() -> TokensOut:
    """Trade a refresh token for a new pair of tokens."""
    return sessions.refresh_session()


@api.post("/logout")
@guard(once=True)
@contract()
def logout(query: LogoutQuery) -> Message:
    """End this login, or all of one's logins."""
    sessions.end_sessions(caller().id, None if query.everywhere else caller().session_id)
    return Message(msg="You are signed out everywhere." if query.everywhere else "You are signed out.")


@api.get("/me")
@guard()
@contract()
def get_me() -> UserOut:
    """Who am I."""
    return USERS.get(caller().id)


@api.post("/me/password")
@guard(signs_out="caller")
@contract()
def change_my_password(json: PasswordChange) -> TokensOut:
    """Change one's own password: every other login ends."""
    return accounts.change_own_password(json.current_password, json.new_password)


@api.get("/me/sessions")
@guard()
@contract()
def list_my_sessions() -> list[SessionOut]:
    """Where am I signed in."""
    mine = db.session.scalars(LoginSession.open(caller().id).order_by(LoginSession.last_used_at.desc()))
    sessions = [SessionOut.of(session) for session in mine]
    return [one.model_copy(update={"current": one.id == caller().session_id}) for one in sessions]


@api.delete("/me/sessions/<id:session_id>")
@guard(signs_out="caller")
@contract()
def end_my_session(session_id: int) -> Message:
    """End one of one's own logins."""
    if not sessions.end_sessions(caller().id, session_id):
        raise errors.NotFound(f"You have no login {session_id}.")
    return Message(msg="That login has ended.")


@api.post("/password/forgot")
@limiter.limit("10 per minute")
@contract()
def forgot_password(json: ForgottenPassword) -> Message:
    """Ask for a link to set a new password."""
    db.session.execute(select(1))  # while the database is away there is nothing to promise
    mail.send_reset_link(accounts.reset_link_to_mail, json.email)
    return Message(msg="If there is an account with this email, a link is on its way to it.")


@api.post("/password/reset")
@limiter.limit("10 per minute")
@contract()
def reset_password(json: PasswordResetIn) -> Message:
    """Set a new password by a link's token."""
    accounts.reset_password(json.token, json.password)
    return Message(msg="Your password is set. Please sign in.")


# --- Staff ---


@api.get("/users")
@guard()
@contract()
def list_users(query: UserQuery) -> Many[UserOut]:
    """The staff directory."""
    return USERS.answer_to(query)


@api.get("/user/<id:user_id>")
@guard()
@contract()
def get_user(user_id: int) -> UserOut:
    """One member of the staff."""
    return USERS.get(user_id)


@api.patch("/user/<id:user_id>")
@guard(signs_out="user_id")
@contract()
def update_user(user_id: int, json: UserPatch) -> UserOut:
    """Change a member of the staff."""
    user = rights.editable(User, user_id)
    accounts.change(user, json.given())
    return UserOut.of(save(user))


@api.delete("/user/<id:user_id>")
@guard(signs_out="user_id")
@contract()
def delete_user(user_id: int) -> Message:
    """Archive a member of the staff."""
    rights.editable(User, user_id).archive()
    return Message(msg=f"User {user_id} is archived.")


@api.post("/user/<id:user_id>/restore")
@guard(signs_out="user_id")
@contract()
def restore_user(user_id: int) -> UserOut:
    """Bring an archived user back."""
    return UserOut.of(restored(User, user_id))


@api.get("/user/<id:user_id>/history")
@guard()
@contract()
def get_user_history(user_id: int) -> list[HistoryOut]:
    """Every change of a member of the staff."""
    return audit.history(rights.with_history(User, user_id))


# --- Patients ---


@api.get("/patients")
@guard()
@contract()
def list_patients(query: PatientQuery) -> Many[PatientOut]:
    """The patients: all, a page, or those that match."""
    return PATIENTS.answer_to(query)


@api.post("/patients")
@guard()
@contract(201, at="/patient/{id}")
@idempotent(Patient, lambda made: PatientOut.of(find(Patient, made)))
def create_patient(json: PatientIn) -> PatientOut:
    """Create a patient."""
    patient = save(rights.create(Patient, json.model_dump()))
    made(patient)
    return PatientOut.of(patient)


@api.get("/patient/<id:patient_id>")
@guard()
@contract()
def get_patient(patient_id: int) -> PatientOut:
    """One patient."""
    return PATIENTS.get(patient_id)


@api.patch("/patient/<id:patient_id>")
@guard()
@contract()
def update_patient(patient_id: int, json: PatientPatch) -> PatientOut:
    """Change a patient."""
    patient = rights.editable(Patient, patient_id)
    rights.change(patient, json.given())
    return PatientOut.of(save(patient))


@api.delete("/patient/<id:patient_id>")
@guard()
@contract()
def delete_patient(patient_id: int) -> Message:
    """Archive a patient, with their reports and appointments."""
    rights.editable(Patient, patient_id).archive()
    return Message(msg=f"Patient {patient_id} is archived.")


@api.post("/patient/<id:patient_id>/restore")
@guard()
@contract()
def restore_patient(patient_id: int) -> PatientOut:
    """Bring an archived patient back, with what was archived along."""
    return PatientOut.of(restored(Patient, patient_id))


@api.get("/patient/<id:patient_id>/history")
@guard()
@contract()
def get_patient_history(patient_id: int) -> list[HistoryOut]:
    """Every change of a patient."""
    return audit.history(rights.with_history(Patient, patient_id))


# --- Appointments ---

with_names = (joinedload(Appointment.patient), joinedload(Appointment.doctor))


@api.get("/appointment")
@guard()
@contract()
def list_appointments(query: AppointmentQuery) -> Many[AppointmentOut]:
    """The appointments, with names: all, a page, or those of a doctor, a patient, a time."""
    return APPOINTMENTS.answer_to(query)


@api.post("/appointment")
@guard()
@contract(201, at="/appointment/{id}")
@idempotent(Appointment, lambda made: AppointmentOut.of(find(Appointment, made, *with_names)))
def create_appointment(json: AppointmentIn) -> AppointmentOut:
    """Book an appointment."""
    appointment = save(rights.create(Appointment, json.model_dump()))
    made(appointment)
    return AppointmentOut.of(appointment)


@api.get("/appointment/<id:appointment_id>")
@guard()
@contract()
def get_appointment(appointment_id: int) -> AppointmentOut:
    """One appointment, with names."""
    return APPOINTMENTS.get(appointment_id)


@api.patch("/appointment/<id:appointment_id>")
@guard()
@contract()
def update_appointment(appointment_id: int, json: AppointmentPatch) -> AppointmentOut:
    """Change or move an appointment."""
    appointment = rights.editable(Appointment, appointment_id)
    rights.change(appointment, json.given())
    return AppointmentOut.of(save(appointment))


@api.delete("/appointment/<id:appointment_id>")
@guard()
@contract()
def delete_appointment(appointment_id: int) -> Message:
    """Archive an appointment."""
    rights.editable(Appointment, appointment_id).archive()
    return Message(msg=f"Appointment {appointment_id} is archived.")


@api.post("/appointment/<id:appointment_id>/restore")
@guard()
@contract()
def restore_appointment(appointment_id: int) -> AppointmentOut:
    """Bring an archived appointment back."""
    return AppointmentOut.of(restored(Appointment, appointment_id))


@api.get("/appointment/<id:appointment_id>/history")
@guard()
@contract()
def get_appointment_history(appointment_id: int) -> list[HistoryOut]:
    """Every change of an appointment."""
    return audit.history(rights.with_history(Appointment, appointment_id))


# --- Reports ---

with_images = (joinedload(Report.patient), joinedload(Report.doctor), selectinload(Report.images))


def shown(report: Report) -> ReportOut:
    """The report as its reader gets it: each image with a link of their own."""
    answer, link = ReportOut.of(report), media.links(caller().id)
    for image in answer.images:
        image.image_url = link(image.image_url)
    return answer


def with_links() -> Callable[[dict[str, Any]], None]:
    """Does to the fields of a report what `shown` does to the record."""
    link = media.links(caller().id)

    def give_links(report: dict[str, Any]) -> None:
        for image in report["images"]:
            image["image_url"] = link(image["image_url"])

    return give_links


@api.get("/reports")
@guard()
@contract()
def list_reports(query: ReportQuery) -> Many[ReportOut]:
    """The reports, with names and images: all, a page, or those of a doctor, a patient, a time."""
    return REPORTS.answer_to(query, with_links())


@api.post("/reports")
@guard()
@contract(201, at="/reports/{id}")
@idempotent(Report, lambda made: shown(find(Report, made, *with_images)), lease=True)
def create_report(form: ReportIn, images: Files) -> ReportOut:
    """File a report with its images."""
    if not images:
        raise errors.Invalid(
            images="A report has at least one image: send files named `images` as multipart/form-data."
        )
    fields = form.model_dump()
    rights.check_report(fields)

    def file_report() -> ReportOut:
        report = rights.create(Report, fields)
        uploads.attach_to(report)
        made(save(report))
        return shown(report)

    with outside_transaction(), uploaded(images) as uploads:
        return in_transaction(file_report)


@api.get("/reports/<id:report_id>")
@guard()
@contract()
def get_report(report_id: int) -> ReportOut:
    """One report, with names and images."""
    return REPORTS.get(report_id, with_links())


@api.patch("/reports/<id:report_id>")
@guard()
@contract()
def update_report(report_id: int, form: ReportPatch, images: Files) -> ReportOut:
    """Change a report; new images are added, or replace the old ones."""
    changes = form.given()
    replace = changes.pop("replace_images", False)
    if replace and not images:
        raise errors.Invalid(images="Replacing the images takes at least one new image.")
    rights.check_report(changes, rights.editable(Report, report_id))

    def change_report() -> ReportOut:
        report = rights.editable(Report, report_id, *with_images)
        rights.change(report, changes)
        uploads.attach_to(report, replace)
        return shown(save(report))

    with outside_transaction(), uploaded(images) as uploads:
        return in_transaction(change_report)


@api.delete("/reports/<id:report_id>")
@guard()
@contract()
def delete_report(report_id: int) -> Message:
    """Archive a report, with its images."""
    rights.editable(Report, report_id).archive()
    return Message(msg=f"Report {report_id} is archived.")


@api.post("/reports/<id:report_id>/restore")
@guard()
@contract()
def restore_report(report_id: int) -> ReportOut:
    """Bring an archived report back."""
    return shown(restored(Report, report_id, *with_images))


@api.get("/reports/<id:report_id>/history")
@guard()
@contract()
def get_report_history(report_id: int) -> list[HistoryOut]:
    """Every change of a report and its images."""
    return audit.history(rights.with_history(Report, report_id))


# --- History of all ---


@api.get("/audit")
@guard()
@contract()
def list_audit(query: AuditQuery) -> Many[HistoryOut]:
    """Every record's changes, and sign-ins, the newest first."""
    return audit.search(query)


# --- Images and the server itself ---


@api.get("/media/<key>")
def media_file(key: str) -> Response:
    """A local image, by its signed, expiring link alone."""
    return media.respond(key, request.args)


@api.get("/")
@contract()
def index() -> Welcome:
    """Name, version and links; a browser is shown the interactive page."""
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        abort(redirect("/docs"))
    links = {
        "documentation": "/docs",
        "openapi": "/openapi.json",
        "sign up": "/signup",
        "sign in": "/login",
        "health": "/healthz",
        "readiness": "/readyz",
    }
    return Welcome(name="Hosi Server", version=VERSION, links=links)


# Scripts and styles from here alone; Swagger UI draws its icons from data: and shows images as blob:.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


@api.get("/docs")
def docs() -> Response:
    """The interactive page."""
    page = send_from_directory(f"{current_app.static_folder}", "docs/index.html", conditional=False, etag=False)
    page.headers["Content-Security-Policy"] = DOCS_POLICY
    return page


@api.get("/openapi.json")
def openapi_document() -> Response:
    """This interface, as an OpenAPI document."""
    return Response(current_app.extensions["openapi"].text, mimetype="application/json")


@api.get("/healthz")
@contract()
def healthz() -> Health:
    """The process lives."""
    return Health(status="ok")


@api.get("/readyz")
@contract()
def readyz() -> Readiness:
    """The database answers and its schema is current."""
    return Readiness(status="ready", database=db.engine.dialect.name, schema_revision=database.check_schema())


# --- The application ---


class IdConverter(IntegerConverter):
    """A record's id, at most `LARGEST_ID`. What cannot be one is no address of ours: 404, whatever the method."""

    regex = "[1-9][0-9]{0,8}"


class NoSessions(SessionInterface):
    """We keep no cookie; Flask's own sessions would look for one at each request."""

    def open_session(self, app: Flask, request: Request) -> NullSession:
        return NullSession()


HEADERS = {
    "Cache-Control": "no-store",  # medical answers are kept by no cache
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # a link to an image is a key to it
    "X-Content-Type-Options": "nosniff",
}
EXPOSED = ["ETag", "Link", "Location", "Retry-After", "X-Total-Count", "X-Request-ID"]


def _add_headers(response: Response) -> Response:
    given = {name.lower() for name, _ in response.headers}
    response.headers.extend((name, value) for name, value in HEADERS.items() if name.lower() not in given)
    return response


def _allow_origins(app: Flask) -> None:
    """CORS, where a browser asks for it: Flask-CORS takes longer over its headers than most views do over the rest."""
    CORS(app, origins=app.config["CORS_ORIGINS"], expose_headers=EXPOSED, max_age=600, intercept_exceptions=False)
    hooks = app.after_request_funcs[None]
    allow: Callable[[Response], Response] = hooks.pop()  # type: ignore[assignment]
    hooks.append(lambda response: allow(response) if "Origin" in request.headers else response)


def create_app(settings: dict[str, Any] | None = None) -> Flask:
    """The application, by the settings of the environment, or by `settings` alone with FLASK_ENV "testing"."""
    setting = config.read_settings(settings)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("hosi").setLevel(setting["LOG_LEVEL"])
    logging.getLogger("hosi.access").setLevel("INFO")  # who read what is written down at any level
    app = Flask(__name__, instance_path=str(setting["INSTANCE_PATH"]), static_folder="static")
    app.config.update(setting, MAX_CONTENT_LENGTH=JSON_LIMIT)
    app.request_class = APIRequest
    app.session_interface = NoSessions()
    app.url_map.converters["id"] = IdConverter
    app.url_map.strict_slashes = False
    if proxies := setting["TRUSTED_PROXIES"]:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies)  # type: ignore[method-assign]
    for part in (errors, database, fast_reads, passwords, sessions, limits, media, cli):
        part.init_app(app)
    listeners.register()
    _allow_origins(app)
    app.after_request(_add_headers)
    app.register_blueprint(api)
    openapi.init_app(app, VERSION, {view: who.value for view, who in rights.POLICY.items()}, limits.is_limited)
    return app


if __name__ == "__main__":
    application = create_app()
    application.run(application.config["HOST"], application.config["PORT"], threaded=True)
