"""Judges, hashes and checks passwords."""

import unicodedata
from threading import Lock

from flask import Flask, current_app
from flask_bcrypt import Bcrypt

from schemas import PASSWORD_LENGTH
from server import errors
from server.database import refuse_open_transaction

bcrypt = Bcrypt()

FEWEST_GUESSES = 10**6  # minimum zxcvbn guess estimate we accept
JUDGED = 30  # zxcvbn scores only the first 30 characters: it is slow on unusual characters
_zxcvbn = Lock()  # zxcvbn keeps `user_inputs` in a global that all threads share


def hash_password(password: str, email: str, *names: str, field: str = "password") -> str:
    """Return the bcrypt hash of a new password. bcrypt is slow on purpose, so no transaction may be open.

    A password must not be the owner's `email` or close to the owner's `names`. An error names the request's `field`.
    Raises `Invalid` for a password that is short or easy to guess (NIST SP 800-63B section 5.1.1.2).
    """
    refuse_open_transaction("hash_password")
    plain = _normalised(password).strip()
    if len(plain) < PASSWORD_LENGTH:
        raise errors.Invalid({field: [f"A password has at least {PASSWORD_LENGTH} characters."]})
    plain, mailbox = plain.lower(), email.partition("@")[0]
    if plain in (email, mailbox) or len(set(plain)) < 3 or _guesses(plain, [email, mailbox, *names]) < FEWEST_GUESSES:
        raise errors.Invalid({field: ["This password is among the first that anybody would try. Choose another."]})
    return rehash(password)


def rehash(password: str) -> str:
    """Return the hash of an accepted password at the cost `BCRYPT_LOG_ROUNDS`. No transaction may be open."""
    refuse_open_transaction("rehash")
    return str(bcrypt.generate_password_hash(_normalised(password), _rounds()), "ascii")


def is_right(password: str, password_hash: str | None) -> bool:
    """Return whether `password_hash` is the hash of `password`. No transaction may be open.

    A missing hash and a hash of lower cost take the same time: the time must not tell which emails have an account.
    """
    refuse_open_transaction("is_right")
    password = _normalised(password)
    right = bcrypt.check_password_hash(password_hash or _hash_of_no_password(_rounds()), password)
    if password_hash:
        # A hash of cost n takes 2^n. The checks add up to the full cost m: 2^n + 2^n + 2^(n+1) + … + 2^(m-1) = 2^m.
        for cost in range(_cost(password_hash), _rounds()):
            bcrypt.check_password_hash(_hash_of_no_password(cost), password)
    return bool(right and password_hash)


def is_outdated(password_hash: str) -> bool:
    """Return whether the hash has a lower cost than `BCRYPT_LOG_ROUNDS`."""
    return _cost(password_hash) < _rounds()


def _guesses(password: str, user_inputs: list[str]) -> int:
    """Return zxcvbn's estimate for the first characters: the whole password takes at least as many guesses."""
    from zxcvbn import zxcvbn  # a large module, not needed before the first new password

    with _zxcvbn:
        return int(zxcvbn(password[:JUDGED], user_inputs)["guesses"])


def _normalised(password: str) -> str:
    """Return the NFKC form, since keyboards write `é` in two ways (NIST SP 800-63B section 5.1.1.2).

    Over 1,000 characters the password stays as it is: NFKC of a million combining marks takes hours.
    """
    return unicodedata.normalize("NFKC", password) if len(password) <= 1000 else password


def _rounds() -> int:
    rounds: int = current_app.config["BCRYPT_LOG_ROUNDS"]
    return rounds


def _cost(password_hash: str) -> int:
    return int(password_hash.split("$")[2])


def _hash_of_no_password(rounds: int) -> str:
    """Return a hash of this cost that no password has."""
    return f"$2b${rounds:02}${'.' * 53}"


def init_app(app: Flask) -> None:
    """Set up bcrypt."""
    bcrypt.init_app(app)
