"""How gunicorn serves the application: https://docs.gunicorn.org/en/stable/settings.html"""

import socket
import struct
import subprocess
import sys
from typing import Any

from config import ROOT, read_settings

_settings = read_settings()  # a wrong setting stops the start with its sentence, before any worker

wsgi_app = "app:create_app()"
_host = _settings["HOST"]
bind = f"{f'[{_host}]' if ':' in _host else _host}:{_settings['PORT']}"
workers = _settings["WEB_CONCURRENCY"]
worker_class = "gthread"  # threads suit routes that wait on uploads
threads = _settings["WEB_THREADS"]
timeout = 120  # seconds without a heartbeat of a worker's main loop; a request in a thread may take longer
graceful_timeout = 30
keepalive = 5
limit_request_line = 8190  # bytes, gunicorn's maximum: a cursor and a long search must fit
control_socket_disable = True
max_requests = 20_000  # restarts a worker, in case its memory grows; the jitter spreads the restarts
max_requests_jitter = 2_000

# Seconds. A client that reads nothing of an answer for longer loses its connection: it holds a thread and a stream.
UNREAD = 30


def on_starting(server: Any) -> None:
    """End the start with a sentence if AUDIT_KEY or TIMEZONE is wrong.

    Another process checks it: workers inherit the modules of this process, and a reload must load app.py again.
    """
    command = [sys.executable, "-m", "flask", "--app", "app", "check"]
    if code := subprocess.run(command, cwd=ROOT, check=False).returncode:  # noqa: S603  # a command of our own
        sys.exit(code)


def when_ready(server: Any) -> None:
    """Limit how long sending may block. Connections inherit the limit of the listening socket; gunicorn sets none."""
    for listener in server.LISTENERS:
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", UNREAD, 0))
