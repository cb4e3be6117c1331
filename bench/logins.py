"""Signs in with many clients at once, each as a user of their own, and prints the logins per second.

    DATABASE_URL=postgresql://… python bench/logins.py [--clients 16] [--seconds 10] [--checkout FOLDER]

Runs the server of this checkout, or of another one to compare with. bcrypt takes its fewest rounds: what is left are
the statements of a login and the waits for each other.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.server import PASSWORD, Server, database  # noqa: E402


def sign_in_until(server: Server, email: str, end: float, took: list[float]) -> None:
    while time.monotonic() < end:
        answer = server.call("POST", "/login", {"email": email, "password": PASSWORD})
        assert answer.status == 200, answer.body
        took.append(answer.seconds)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--clients", type=int, default=16)
    options.add_argument("--seconds", type=float, default=10)
    options.add_argument("--checkout", type=Path, default=ROOT)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, database(folder, "logins") as url:
        server = Server(url, folder, root=given.checkout.resolve(), SIGNUP="open", WEB_THREADS="16")
        try:
            server.start()
            emails = [f"user{n}@clinic.test" for n in range(given.clients)]
            for email in emails:
                body = {"first_name": "Uma", "last_name": "Otieno", "role": "doctor", "password": PASSWORD}
                assert server.call("POST", "/signup", {**body, "email": email}).status == 201
            took: list[float] = []
            end = time.monotonic() + given.seconds
            clients = [threading.Thread(target=sign_in_until, args=(server, email, end, took)) for email in emails]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
        finally:
            server.kill()
            server.engine.dispose()
    took.sort()
    median, slow = (took[int(len(took) * share)] * 1000 for share in (0.5, 0.99))
    rate = len(took) / given.seconds
    print(f"{given.clients} clients: {rate:.0f} logins a second, {median:.0f} ms; the slowest 1 %: {slow:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
