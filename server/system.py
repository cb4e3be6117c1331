"""The routes about the server itself: its name and links, the interactive page, the OpenAPI document, health."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import cache, partial
from typing import Literal

from flask import Blueprint, Flask, Response, abort, after_this_request, current_app, request, send_from_directory
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from server import database, errors, metrics, openapi, processes, times
from server.database import db
from server.endpoint import contract, public
from server.routes import routes

system = Blueprint("system", __name__)

# Only scripts and styles of this server run. Swagger UI has icons in data: addresses and shows images as blob:.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# The clinic's page besides shows previews of pictures (blob:) and the pictures of the image stores.
CLINIC_POLICY = (
    "default-src 'self'; img-src {images}; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
PAGE = {"responses": {"200": {"description": "The page.", "content": {"text/html": {"schema": {"type": "string"}}}}}}
DOCUMENT = {
    "responses": {
        "200": {"description": "The document.", "content": {"application/json": {"schema": {"type": "object"}}}}
    }
}


SignUp = Literal["first_administrator", "open", "approval", "closed"]


class Welcome(BaseModel):
    name: str = Field(examples=["Hosi Server"])
    version: str = Field(examples=["1.0.0"])
    links: dict[str, str] = Field(examples=[{"documentation": "/docs", "openapi": "/openapi.json"}])
    timezone: str = Field(description="The clinic's time zone.", examples=["Africa/Nairobi"])
    now: str = Field(description="This instant, with the clinic's offset.", examples=["2030-03-04T09:12:45+03:00"])
    today: date = Field(description="The clinic's day.", examples=["2030-03-04"])
    sign_up: SignUp | None = Field(
        description="Who may sign up: the first administrator, as there is none yet; anybody (`open`); anybody, but an "
        "administrator has to approve it (`approval`); nobody (`closed`). null while the database is away.",
        examples=["open"],
    )


class Health(BaseModel):
    status: str = Field(examples=["ok"])


class Readiness(BaseModel):
    status: str = Field(examples=["ready"])
    database: str = Field(examples=["sqlite"])
    schema_revision: str = Field(examples=["0009"])


@system.get("/")
@public
@contract(tag="Server", uses_database=False)
def index() -> Welcome:
    """Get name, version and links; a browser gets the clinic's page."""
    after_this_request(_vary_by_accept)
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        abort(_clinic_page())
    return Welcome(
        **current_app.extensions["welcome"],
        timezone=times.clinic_zone().key,
        now=times.shown(times.now()),
        today=times.today(),
        sign_up=_sign_up(),
    )


@system.get("/reset-password")
@public
@contract(tag="Server", uses_database=False, operation=PAGE)
def reset_password_page() -> Response:
    """Show the clinic's page, on which one sets a new password with a mailed link."""
    return _clinic_page()


def _clinic_page() -> Response:
    return _page("clinic", CLINIC_POLICY.format(images=current_app.extensions["image_origins"]))


def _page(name: str, policy: str) -> Response:
    page = send_from_directory(f"{current_app.static_folder}", f"{name}/index.html", conditional=False, etag=False)
    page.headers["Content-Security-Policy"] = policy
    return page


def _vary_by_accept(response: Response) -> Response:
    response.vary.add("Accept")
    return response


def _sign_up() -> SignUp | None:
    """Return who may sign up; None if the database cannot tell. `GET /` answers without a database, too."""
    try:
        state: SignUp = current_app.extensions["sign_up"]()
    except SQLAlchemyError:
        return None
    return state


@system.get("/docs")
@public
@contract(tag="Server", uses_database=False, operation=PAGE)
def docs() -> Response:
    """Show the interactive page."""
    return _page("docs", DOCS_POLICY)


@system.get("/openapi.json")
@public
@contract(tag="Server", uses_database=False, operation=DOCUMENT)
def openapi_document() -> Response:
    """Get this interface as an OpenAPI document."""
    return Response(current_app.extensions["openapi"](), mimetype="application/json")


@system.get("/healthz")
@public
@contract(tag="Server", uses_database=False)
def healthz() -> Health:
    """Ask whether the process lives."""
    return Health(status="ok")


@system.get("/readyz")
@public
@contract(tag="Server")
def readyz() -> Readiness:
    """Ask whether the database answers, its schema is current, and `TIMEZONE` is the zone of its times.

    A server that is about to stop is not ready.
    """
    if processes.is_draining():
        raise errors.Unavailable("This server is about to stop.")
    revision = database.check_schema()
    current_app.extensions["check_ready"]()
    return Readiness(status="ready", database=db.engine.dialect.name, schema_revision=revision)


@system.get("/metrics")
@public  # METRICS_TOKEN, or the address of this machine itself
@contract(tag="Server", errors=(401, 403), uses_database=False, operation=metrics.PAGE)
def get_metrics() -> Response:
    """Get figures for Prometheus."""
    metrics.check_access(request, current_app.config["METRICS_TOKEN"])
    return Response(metrics.text(), content_type=metrics.CONTENT_TYPE)


def init_app(
    app: Flask,
    about: openapi.About,
    links: Mapping[str, str],
    sign_up: Callable[[], SignUp],
    check_ready: Callable[[], object],
    image_origins: Sequence[str],
) -> None:
    """Add these routes, and check the contracts of all routes. Register every other blueprint before.

    `GET /` answers `links` together with links to these routes, and what `sign_up` returns. `GET /readyz` calls
    `check_ready`, which raises an API error. The clinic's page shows images of
    `image_origins`. Raises RuntimeError as `routes` does.
    """
    app.register_blueprint(system)
    all_links = {
        "documentation": "/docs",
        "openapi": "/openapi.json",
        **links,
        "health": "/healthz",
        "readiness": "/readyz",
    }
    app.extensions["welcome"] = {"name": about.title, "version": about.version, "links": all_links}
    app.extensions["sign_up"] = sign_up
    app.extensions["check_ready"] = check_ready
    app.extensions["image_origins"] = " ".join(["'self'", "data:", "blob:", *image_origins])
    routes(app, about.tags, openapi.ERRORS)
    app.extensions["openapi"] = cache(partial(openapi.text, app, about))  # commands need no document
