"""Sends mails by SMTP, in a thread of its own."""

import logging
import smtplib
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from email.utils import parseaddr

import email_validator
from flask import Flask, current_app, g

log = logging.getLogger("hosi.mail")

_sender = ThreadPoolExecutor(1, thread_name_prefix="mail")
TIMEOUT = 20  # seconds


def send(to: str, subject: str, text: str) -> None:
    """Send a mail through `MAIL_SERVER`. Raises OSError or smtplib.SMTPException.

    An address with non-ASCII letters before the @ needs a server with SMTPUTF8 (RFC 6531). Without it, the exception is
    SMTPNotSupportedError.
    """
    setting = current_app.config
    sender = parseaddr(setting["MAIL_FROM"])[1]
    message = EmailMessage()
    message["From"] = setting["MAIL_FROM"].replace(sender, with_ascii_domain(sender)) if sender else ""
    message["To"], message["Subject"] = with_ascii_domain(to), subject
    message.set_content(text)
    with smtplib.SMTP(setting["MAIL_SERVER"], setting["MAIL_PORT"], timeout=TIMEOUT) as server:
        if setting["MAIL_USE_TLS"]:
            server.starttls(context=ssl.create_default_context())
        if setting["MAIL_USERNAME"]:
            server.login(setting["MAIL_USERNAME"], setting["MAIL_PASSWORD"])
        server.send_message(message)


def with_ascii_domain(address: str) -> str:
    """Return the address with its domain in the ASCII form (RFC 5891), which every mail server understands."""
    if address.isascii():
        return address
    parts = email_validator.validate_email(address, check_deliverability=False, globally_deliverable=False)
    return f"{parts.local_part}@{parts.ascii_domain}"


def send_reset_link(make_link: Callable[[str], str | None], email: str) -> None:
    """Make a link and mail it, in a thread: the answer must not take longer for an email that has an account.

    `make_link` gets the email and returns None to send no mail. Failures are logged, not raised.
    """
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    _sender.submit(_send_reset_link, app, make_link, email)


def _send_reset_link(app: Flask, make_link: Callable[[str], str | None], email: str) -> None:
    with app.app_context():
        g.after_request = True
        try:
            if not app.config["MAIL_SERVER"]:
                log.warning("a reset link was asked for, but MAIL_SERVER is not set: use `flask reset-link EMAIL`")
            elif link := make_link(email):
                send(
                    email,
                    "Your new password for Hosi",
                    "Someone, probably you, asked to set a new password for your account.\n\n"
                    f"This link does it, once and within an hour:\n\n{link}\n\n"
                    "If it was not you, do nothing: your password stays as it is.\n",
                )
        except smtplib.SMTPNotSupportedError as error:
            log.error("a reset link could not be mailed: %s", error)
        except Exception:
            log.exception("a reset link could not be mailed")
