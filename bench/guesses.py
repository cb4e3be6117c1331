"""Guesses a password 200 times at once, and measures whether the time of a login tells who has an account.

    python bench/guesses.py                                       # on SQLite
    DATABASE_URL=postgresql://… python bench/guesses.py           # on that server, in a database of its own

Runs the real server with four workers and bcrypt at its usual cost. Exit code 1 if more than five guesses are judged
within the first minute, or if the right password opens the locked account. Exit code 1, too, if the median login for an
unknown email takes over 10 % more or less time than a login with a wrong password.
"""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from server import PASSWORD, Answer, Server, server

GUESSES = 200
TRIES = 5  # before the first lock
TIMED = 50  # logins of each kind
TOLERANCE = 0.10


def sign_up(at: Server, name: str) -> None:
    person = {"first_name": name, "last_name": "Otieno", "email": f"{name}@clinic.test", "password": PASSWORD}
    made = at.call("POST", "/signup", person)
    assert made.status == 201, made.body


def log_in(at: Server, name: str, password: str, address: str = "198.51.100.7") -> Answer:
    """Sign in from this address: the server trusts the proxy that names it."""
    login = {"email": f"{name}@clinic.test", "password": password}
    return at.call("POST", "/login", login, **{"X-Forwarded-For": address})


def guesses_are_limited(at: Server) -> bool:
    sign_up(at, "guessed")
    with ThreadPoolExecutor(GUESSES) as attackers:
        answers = attackers.map(lambda number: log_in(at, "guessed", f"guess {number}"), range(GUESSES))
        statuses = Counter(answer.status for answer in answers)
    locked = log_in(at, "guessed", PASSWORD).status == 429
    print(
        f"{GUESSES} guesses at once: {statuses[401]} judged, {statuses[429]} refused;",
        f"then the right password {'is refused, too' if locked else 'OPENS THE ACCOUNT'}",
    )
    return statuses[401] <= TRIES and statuses[401] + statuses[429] == GUESSES and locked


def time_tells_nothing(at: Server) -> bool:
    """Compare logins for unknown emails with wrong passwords, in turns. Each comes from a new address: no lock."""
    names = [f"doctor{number}" for number in range(TIMED // TRIES)]
    for name in names:
        sign_up(at, name)
    unknown, wrong = [], []
    for number in range(TIMED):
        name, address = names[number % len(names)], f"203.0.113.{number + 1}"
        turn = [(unknown, f"nobody-{name}"), (wrong, name)]
        for times, email in turn if number % 2 else turn[::-1]:
            answer = log_in(at, email, "wrong password", address)
            assert answer.status == 401, answer.body
            times.append(answer.seconds)
    difference = median(unknown) / median(wrong) - 1
    print(
        f"median of {TIMED} logins: unknown email {median(unknown) * 1000:.1f} ms,",
        f"wrong password {median(wrong) * 1000:.1f} ms: {difference:+.1%}",
    )
    return abs(difference) <= TOLERANCE


def main() -> int:
    settings = {"WEB_CONCURRENCY": "4", "BCRYPT_LOG_ROUNDS": "12", "TRUSTED_PROXIES": "1"}
    settings["SHED_AFTER_MS"] = "60000"  # each guess is judged or refused, on a busy machine too, and none is sent away
    with server(**settings) as at:
        print(f"{at.engine.dialect.name}:")
        return 0 if all([guesses_are_limited(at), time_tells_nothing(at)]) else 1


if __name__ == "__main__":
    sys.exit(main())
