"""Says at the start where the server is, what to try first, and who may sign up."""

from flask import current_app
from sqlalchemy.exc import SQLAlchemyError

from clinic import accounts
from models import User
from server.database import db

SIGN_UP = {
    "first_administrator": 'There is no administrator yet. Sign up as the first one: POST /signup, "role": "admin".',
    "open": "Anybody may sign up, and is active at once. (SIGNUP=open)",
    "approval": "Anybody may sign up. An administrator has to approve the account. (SIGNUP=approval)",
    "closed": "Nobody may sign up. An administrator makes the accounts. (SIGNUP=closed)",
}


def message() -> str:
    """Return what a person should know before the server starts. It reads the database."""
    setting = current_app.config
    production = setting["FLASK_ENV"] == "production"
    address, others = _addresses(setting["HOST"], setting["PORT"])
    lines = ["", "Hosi Server starts now. Ctrl+C stops it.", "", f"  address  {address}{others}"]
    if setting["PUBLIC_URL"] not in ("", address):
        lines.append(f"  public   {setting['PUBLIC_URL']}, where clients reach it (PUBLIC_URL)")
    lines.append(f"  page     {address}, in a browser")
    lines.append(f"  try it   {address}/docs")
    if not production:
        lines.append("  data     make seed, in another terminal, makes a demonstration clinic (or: flask seed)")
    lines += [f"  sign-up  {line}" for line in _sign_up_lines(production)]
    return "\n".join([*lines, ""])


def _addresses(host: str, port: int) -> tuple[str, str]:
    """Return the address to open on this machine, and words for the others if the server listens on all of them."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host)  # noqa: S104  # a setting that is read
    if loopback:
        return f"http://{loopback}:{port}", ", and every other address of this machine"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}", ""


def _sign_up_lines(production: bool) -> list[str]:
    """Return who may sign up, and in production how the first administrator is made while there is none."""
    try:
        lines = [SIGN_UP[accounts.who_may_sign_up()]]
        if production and db.session.scalar(User.admins()) is None:
            lines.append("There is no administrator yet. Make the first one: flask create-admin")
    except SQLAlchemyError:
        return ["unknown, because the database does not answer, or has no tables yet: flask db upgrade"]
    return lines
