"""Answers `GET /healthz` on a port and by a thread of its own, while every other thread may be held up.

Each worker has such a thread. They share the port (SO_REUSEPORT), so a probe asks one of the workers.
"""

import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

log = logging.getLogger("hosi")

BODY = b'{"status":"ok"}'
PATIENCE = 1  # seconds that a probe may take to send its request


class _Probe(BaseHTTPRequestHandler):
    timeout = PATIENCE

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a probe comes every few seconds."""


class _Server(HTTPServer):
    allow_reuse_address = True

    def server_bind(self) -> None:
        if hasattr(socket, "SO_REUSEPORT"):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.bind(self.server_address)  # HTTPServer would ask DNS for the name of the host


def start(host: str, port: int) -> None:
    """Answer at this address until the process ends. A port that is taken is logged: the server serves on."""
    host = "127.0.0.1" if host.startswith("unix:") else host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = type("_Server", (_Server,), {"address_family": family})
    try:
        server = kind((host, port), _Probe)
    except OSError as error:
        log.error("HEALTH_PORT %d cannot be used: %s", port, error)
        return
    threading.Thread(target=server.serve_forever, name="liveness", daemon=True).start()
