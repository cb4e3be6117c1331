"""A mail server for tests: it speaks SMTP (RFC 5321) on loopback and keeps the mails."""

import base64
import email
import email.policy
import socketserver
import threading
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any, Self


@dataclass(frozen=True)
class Mail:
    sender: str
    to: list[str]
    message: EmailMessage

    @property
    def text(self) -> str:
        return str(self.message.get_content())


class _Conversation(socketserver.StreamRequestHandler):
    server: "SMTPDouble"

    def handle(self) -> None:
        sender, to = "", list[str]()
        self.server.awake.wait(10)
        self._say("220 double ready")
        while line := self.rfile.readline():
            command, _, rest = line.decode("utf-8" if self.server.smtputf8 else "ascii").strip().partition(" ")
            match command.upper():
                case "EHLO":
                    self._say("250-double", *["250-SMTPUTF8"] * self.server.smtputf8, "250 AUTH PLAIN")
                case "AUTH":
                    self.server.credentials.append(base64.b64decode(rest.partition(" ")[2]).decode())
                    self._say("235 welcome")
                case "MAIL":
                    sender, to = _address(rest), []
                    self._say("250 ok")
                case "RCPT":
                    to.append(_address(rest))
                    self._say("250 ok")
                case "DATA":
                    self._say("354 go on")
                    self.server.take(Mail(sender, to, self._message()))
                    self._say("250 taken")
                case "QUIT":
                    self._say("221 bye")
                    return
                case _:
                    self._say("502 not here")

    def _message(self) -> EmailMessage:
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            lines.append(line.removeprefix(b"."))
        message = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        return message

    def _say(self, *lines: str) -> None:
        self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())


def _address(rest: str) -> str:
    return rest.partition("<")[2].partition(">")[0]


class SMTPDouble(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Conversation)
        self.smtputf8 = False  # whether it takes addresses with other letters than ASCII (RFC 6531)
        self.port: int = self.server_address[1]
        self.mails: list[Mail] = []
        self.credentials: list[str] = []
        self.awake = threading.Event()  # until this is set, it takes its time to greet
        self.awake.set()
        self._arrived = threading.Condition()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()

    def take(self, mail: Mail) -> None:
        with self._arrived:
            self.mails.append(mail)
            self._arrived.notify_all()

    def wait(self, count: int = 1) -> list[Mail]:
        """The mails, once there are so many."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.mails) >= count, timeout=10), "no mail came"
            return list(self.mails)
