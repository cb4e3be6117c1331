"""How gunicorn serves the application: https://docs.gunicorn.org/en/stable/settings.html"""

import socket
import struct
import subprocess
import sys
from typing import Any

from config import ROOT, read_settings

_settings = read_settings()  # here too, so that a wrong setting stops the start with its sentence

wsgi_app = "app:create_app()"
_host = _settings["HOST"]
bind = f"{f'[{_host}]' if ':' in _host else _host}:{_settings['PORT']}"
workers = _settings["WEB_CONCURRENCY"]
worker_class = "gthread"  # threads suit routes that wait on uploads
threads = _settings["WEB_THREADS"]
timeout = 120  # seconds without a sign of life of a worker's own loop; a request of one thread may take longer
graceful_timeout = 30
keepalive = 5
limit_request_line = 8190  # bytes, the most there is: a long search and a page's cursor
control_socket_disable = True
max_requests = 20_000  # a worker is renewed now and then, not all at once
max_requests_jitter = 2_000

UNREAD = 30  # seconds: who reads nothing of an answer for so long shall not keep a thread and a database connection


def on_starting(server: Any) -> None:
    """Ends the start with a sentence if AUDIT_KEY is wrong. A process of its own: a reload must import app.py anew."""
    command = [sys.executable, "-m", "flask", "--app", "app", "audit", "check-key"]
    if code := subprocess.run(command, cwd=ROOT, check=False).returncode:  # noqa: S603  # a command of our own
        sys.exit(code)


def when_ready(server: Any) -> None:
    """Every connection takes this limit over from the socket that listens; gunicorn itself has none for sending."""
    for listener in server.LISTENERS:
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", UNREAD, 0))
