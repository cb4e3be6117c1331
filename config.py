"""Settings: read from the environment, `.env` and `instance/config.py`, checked once at start.

Every setting is a field of `Settings`, with its default and its description. The sources, each of which wins over
the sources before it: defaults, `.env`, the environment, `instance/config.py`, the argument of `create_app`.
"""

import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo

from dotenv import dotenv_values
from flask import Config
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from database_url import engine_options, postgresql_url, standby_options

ROOT = Path(__file__).resolve().parent
SECRETS = ("SECRET_KEY", "JWT_SECRET_KEY", "AUDIT_KEY")
RATELIMITS = (
    "RATELIMIT_SIGNUP",
    "RATELIMIT_LOGIN",
    "RATELIMIT_REFRESH",
    "RATELIMIT_PASSWORD_FORGOT",
    "RATELIMIT_PASSWORD_RESET",
)
SHORTEST_SECRET = 32  # bytes: as long as the SHA-256 output, RFC 7518 section 3.2


class ConfigError(SystemExit):
    """A setting is missing or wrong. The program stops with a sentence that says what to do."""


def _split_at_commas(text: object) -> object:
    return [part.strip() for part in text.split(",") if part.strip()] if isinstance(text, str) else text


WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")  # FHIR's DaysOfWeek
END_OF_DAY = 24 * 60  # minutes
CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d|24:00"


def minute_of(clock: str) -> int:
    """Return the minute of the day of a time such as 08:30."""
    hour, minute = clock.split(":")
    return int(hour) * 60 + int(minute)


@cache
def read_weekly_hours(text: str) -> tuple[tuple[int, int, int], ...]:
    """Read hours such as "mon-fri 08:00-12:00 13:00-17:00, sat 09:00-12:00".

    Returns the weekday from Monday 0, the minute of the start and the minute of the end of each. Raises ValueError.
    """
    words = "|".join(WEEKDAYS)
    found: list[tuple[int, int, int]] = []
    for part in text.lower().split(","):
        match = re.fullmatch(
            rf"\s*({words})(?:\s*-\s*({words}))?((?:\s+(?:{CLOCK})-(?:{CLOCK}))+)\s*", part, flags=re.ASCII
        )
        if not match:
            raise ValueError("write the hours as mon-fri 08:00-17:00, sat 09:00-12:00")
        first, last = WEEKDAYS.index(match[1]), WEEKDAYS.index(match[2] or match[1])
        if last < first:
            raise ValueError("days go from mon to sun")
        for clocks in match[3].split():
            starts, ends = (minute_of(clock) for clock in clocks.split("-"))
            found += [(weekday, starts, ends) for weekday in range(first, last + 1)]
    found.sort()
    if any(starts >= ends for _, starts, ends in found):
        raise ValueError("hours end after they begin")
    if any(one[0] == other[0] and other[1] < one[2] for one, other in pairwise(found)):
        raise ValueError("the hours of a day do not overlap")
    return tuple(found)


Words = Annotated[list[str], BeforeValidator(_split_at_commas)]


class Settings(BaseModel):
    """Every setting, by the name it has in the environment."""

    model_config = ConfigDict(extra="ignore", str_strip_whitespace=True)

    FLASK_ENV: Literal["development", "production", "testing"] = Field(
        "production", description="The mode: `development` or `production`."
    )
    SECRET_KEY: str = Field("", description="Signs links to local images and the cursors of pages. At least 32 bytes.")
    JWT_SECRET_KEY: str = Field("", description="Signs access and refresh tokens. At least 32 bytes.")
    AUDIT_KEY: str = Field(
        "", description="Keys the record history. At least 32 bytes. Keep it for as long as the records."
    )
    AUDIT_KEY_PREVIOUS: Words = Field(
        [], description="Earlier keys of the record history, separated by commas. See `flask audit rotate --help`."
    )
    DATABASE_URL: str = Field("", description="The address of the database. Empty: SQLite in the instance folder.")
    DATABASE_READ_URL: str = Field(
        "",
        description="The address of a standby of PostgreSQL. Whole collections, `GET /audit` and `GET /statistics` are "
        "read there while it has every write that was acknowledged before the request, else from `DATABASE_URL`.",
    )
    STATEMENT_TIMEOUT: int = Field(
        30,
        ge=1,
        description="Seconds that an SQL statement of a request may take on PostgreSQL. Commands have no limit.",
    )
    INSTANCE_PATH: Path = Field(
        ROOT / "instance",
        description="The folder of the SQLite file, the local images and the generated secrets. Only the "
        "server's user needs access.",
    )
    PUBLIC_URL: str = Field(
        "",
        description="The address at which clients reach this server, such as `https://api.clinic.example`. "
        "Production needs it.",
    )
    TIMEZONE: str = Field(
        "",
        description="The clinic's IANA time zone, such as `Africa/Nairobi`. Production needs it; `UTC` in development.",
    )
    CLINIC_HOURS: str = Field(
        "mon-fri 08:00-17:00",
        description="The hours in which slots of doctors without hours of their own are offered, such as `mon-fri "
        "08:00-12:00 13:00-17:00, sat 09:00-12:00`.",
    )
    PHONE_REGION: str = Field(
        "",
        description="The country of phone numbers without a country code, ISO 3166, such as `KE`. Empty: such numbers "
        "are compared by their last eight digits. Run `flask reindex` after a change.",
    )
    CORS_ORIGINS: Words = Field(
        [f"http://{host}:{port}" for host in ("localhost", "127.0.0.1") for port in (3000, 4173, 5173)],
        description="The origins of browser clients, separated by commas.",
    )
    CLOUDINARY_URL: str = Field(
        "",
        description="The Cloudinary account in one line, `cloudinary://KEY:SECRET@CLOUD`. It replaces the next "
        "three settings.",
    )
    CLOUDINARY_CLOUD_NAME: str = Field(
        "", description="The name of the Cloudinary cloud. Empty: images are kept on local disk."
    )
    CLOUDINARY_API_KEY: str = Field("", description="Cloudinary's API key.")
    CLOUDINARY_API_SECRET: str = Field("", description="Cloudinary's API secret.")
    CLOUDINARY_UPLOAD_PREFIX: str = Field(
        "https://api.cloudinary.com",
        description="The address of Cloudinary's API. Its other regions have other addresses.",
    )
    S3_ENDPOINT: str = Field(
        "",
        description="The address of an S3 server that keeps the images, such as `https://minio.clinic.example:9000`. "
        "Empty: no S3.",
    )
    S3_BUCKET: str = Field("", description="The bucket on the S3 server. It must exist, and have nothing else in it.")
    S3_ACCESS_KEY: str = Field("", description="The access key of the S3 server.")
    S3_SECRET_KEY: str = Field("", description="The secret key of the S3 server.")
    S3_REGION: str = Field("us-east-1", description="The region of the bucket.")
    IMAGE_STORE: Literal["", "local", "cloudinary", "s3"] = Field(
        "",
        description="Where new images go: `local`, `cloudinary` or `s3`. Empty: to Cloudinary or S3, if it is set, "
        "else to local disk. Needed where both are set.",
    )
    IMAGE_LINK_TTL: int = Field(
        3600,
        ge=60,
        le=86_400,
        description="Seconds that a link to an image on local disk or S3 works at least, from 60 to 86,400. No link "
        "works for more than twice as long.",
    )
    BCRYPT_LOG_ROUNDS: int = Field(
        12,
        ge=4,
        le=20,
        description="The cost of bcrypt. Each step doubles the time. Never lower it while there are accounts: "
        "their logins then take longer than those of unknown emails, which tells who has an account.",
    )
    SIGNUP: Literal["open", "approval", "closed", ""] = Field(
        "",
        description="Who may sign up as a doctor. `open`: anybody, active at once (default in development). "
        "`approval`: an administrator activates the account (default in production). `closed`: "
        "nobody.",
    )
    PASSWORD_RESET_URL: str = Field(
        "",
        description="The client's page that sets a new password. Empty: `/reset-password` at `PUBLIC_URL`, or at "
        "http://localhost:3000 without it.",
    )
    MAIL_SERVER: str = Field(
        "",
        description="The SMTP server that sends reset links. Empty: none are mailed, and `flask reset-link` "
        "prints one.",
    )
    MAIL_PORT: int = Field(587, ge=1, le=65535, description="The port of the SMTP server.")
    MAIL_USE_TLS: bool = Field(True, description="Whether to use STARTTLS.")
    MAIL_USERNAME: str = Field("", description="The user name for the SMTP server, if it needs one.")
    MAIL_PASSWORD: str = Field("", description="The password for the SMTP server.")
    MAIL_FROM: str = Field("Hosi Server <noreply@localhost>", description="The sender of the mails.")
    RATELIMIT_ENABLED: bool = Field(
        True, description="Whether to limit sign-ups, logins, refreshes and reset links by address."
    )
    RATELIMIT_STORAGE_URI: str = Field(
        "memory://",
        description="Where requests are counted. `memory://`: in each process. `redis://…`: in a Redis that "
        "several nodes share.",
    )
    RATELIMIT_SIGNUP: str = Field("30 per minute", description="The sign-ups of one address.")
    RATELIMIT_LOGIN: str = Field("60 per minute", description="The logins of one address, wrong passwords included.")
    RATELIMIT_REFRESH: str = Field(
        "300 per minute",
        description="The refreshes of one address. A whole clinic's screens may share one.",
    )
    RATELIMIT_PASSWORD_FORGOT: str = Field(
        "10 per minute", description="The requests of one address for a link to set a new password."
    )
    RATELIMIT_PASSWORD_RESET: str = Field(
        "10 per minute", description="The new passwords that one address sets with a link."
    )
    SHED_AFTER_MS: int = Field(
        10_000,
        ge=100,
        description="Milliseconds that a request may wait for its turn in a worker that has more requests than it "
        "computes at once. Then it is answered with 503 and `Retry-After`.",
    )
    TRUSTED_PROXIES: int = Field(
        0,
        ge=0,
        description="The number of proxies in front whose X-Forwarded-For is believed. 0: none.",
    )
    LOG_LEVEL: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The lowest level that is logged: `DEBUG`, `INFO`, `WARNING` or `ERROR`."
    )
    LOG_FORMAT: Literal["plain", "json"] = Field(
        "plain", description="How a message is logged: `plain`, a line of text, or `json`, an object in a line."
    )
    METRICS_TOKEN: str = Field(
        "",
        description="The bearer token with which Prometheus reads `/metrics`. At least 16 characters. Empty: only "
        "this machine itself reads it, without a proxy.",
    )
    HOST: str = Field(
        "127.0.0.1",
        description="The address that `make run` listens on, or `unix:` and the path of a Unix socket.",
    )
    PORT: int = Field(5000, ge=1, le=65535, description="The port that `make run` listens on.")
    WEB_CONCURRENCY: int = Field(2, ge=1, description="The number of worker processes of `make run`.")
    WEB_THREADS: int = Field(
        64, ge=16, description="The number of threads of each worker. Most of them wait: few compute at once."
    )
    DRAIN_SECONDS: int = Field(
        0,
        ge=0,
        le=600,
        description="Seconds between SIGTERM and the stop of `make run`. Meanwhile `/readyz` answers 503, and all else "
        "is answered as ever.",
    )
    HEALTH_PORT: int = Field(
        0,
        ge=0,
        le=65535,
        description="A port on which a thread of its own answers `GET /healthz`, however busy the server is. 0: none.",
    )

    @field_validator("METRICS_TOKEN")
    @classmethod
    def _is_long(cls, token: str) -> str:
        if token and (len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token):
            raise ValueError("has at least 16 characters of ASCII, and no blanks")
        return token

    @field_validator("TIMEZONE")
    @classmethod
    def _is_known_timezone(cls, name: str) -> str:
        if name and not is_known_zone(name):
            raise ValueError("no such IANA time zone; examples are UTC and Africa/Nairobi")
        return name

    @field_validator("CLINIC_HOURS")
    @classmethod
    def _are_hours(cls, text: str) -> str:
        read_weekly_hours(text)
        return text

    @field_validator("PHONE_REGION")
    @classmethod
    def _is_known_region(cls, name: str) -> str:
        if not name:
            return name
        from phonenumbers import SUPPORTED_REGIONS  # takes 0.13 seconds

        if name.upper() not in SUPPORTED_REGIONS:
            raise ValueError("no such ISO 3166 country; examples are KE and GB")
        return name.upper()

    @field_validator("DATABASE_URL", "DATABASE_READ_URL")
    @classmethod
    def _names_the_driver(cls, url: str) -> str:
        """Name psycopg2 for `postgres://` and `postgresql://`: SQLAlchemy 2.1 reads `postgresql://` as psycopg 3."""
        scheme, separator, rest = url.partition("://")
        if url and (not separator or scheme not in ("sqlite", "postgres", "postgresql", "postgresql+psycopg2")):
            raise ValueError("must begin with postgresql:// or sqlite://")
        return url if scheme in ("", "sqlite") else postgresql_url(rest)

    @field_validator("RATELIMIT_STORAGE_URI")
    @classmethod
    def _is_storage(cls, uri: str) -> str:
        if not re.match(r"memory://|rediss?(\+(unix|sentinel|cluster))?://", uri):
            raise ValueError("must be memory:// or begin with redis:// or rediss://")
        return uri

    @field_validator(*RATELIMITS)
    @classmethod
    def _is_rate_limit(cls, text: str) -> str:
        from limits import parse_many  # only where a limit is set

        try:
            parse_many(text)
        except ValueError:
            raise ValueError("write a limit as 30 per minute; several are separated by ;") from None
        return text

    @field_validator("PUBLIC_URL", "PASSWORD_RESET_URL", "CLOUDINARY_UPLOAD_PREFIX", "S3_ENDPOINT")
    @classmethod
    def _is_address(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _has_a_primary(self) -> Self:
        postgresql = self.DATABASE_URL.startswith("postgresql")
        if self.DATABASE_READ_URL and not (postgresql and self.DATABASE_READ_URL.startswith("postgresql")):
            raise ValueError("DATABASE_READ_URL is for PostgreSQL: both addresses must begin with postgresql://")
        return self

    @model_validator(mode="after")
    def _reads_cloudinary_url(self) -> Self:
        if self.CLOUDINARY_URL:
            url = urlsplit(self.CLOUDINARY_URL)
            if url.scheme != "cloudinary" or not (url.hostname and url.username and url.password):
                raise ValueError("CLOUDINARY_URL must be cloudinary://KEY:SECRET@CLOUD")
            self.CLOUDINARY_CLOUD_NAME = url.netloc.rpartition("@")[2]
            self.CLOUDINARY_API_KEY, self.CLOUDINARY_API_SECRET = url.username, unquote(url.password)
        account = self.CLOUDINARY_CLOUD_NAME, self.CLOUDINARY_API_KEY, self.CLOUDINARY_API_SECRET
        if any(account) and not all(account):
            raise ValueError("set all three of CLOUDINARY_CLOUD_NAME, _API_KEY and _API_SECRET, or none of them")
        return self

    @field_validator("S3_ENDPOINT")
    @classmethod
    def _is_server(cls, url: str) -> str:
        if url and not re.fullmatch(r"https?://([\w.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?", url, re.ASCII):
            raise ValueError("must be http://HOST:PORT or https://HOST:PORT, with no path; the bucket is S3_BUCKET")
        if url:
            urlsplit(url).port  # noqa: B018  # raises ValueError if it is out of range
        return url

    @field_validator("S3_BUCKET")
    @classmethod
    def _is_bucket(cls, name: str) -> str:
        """The rules of S3: https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html"""
        if name and (not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", name) or ".." in name):
            raise ValueError("has 3 to 63 small letters, digits, hyphens and dots")
        return name

    @model_validator(mode="after")
    def _has_whole_store(self) -> Self:
        """Check that a store has all of its settings, and that it is said which store gets new images."""
        bucket = self.S3_ENDPOINT, self.S3_BUCKET, self.S3_ACCESS_KEY, self.S3_SECRET_KEY
        if any(bucket) and not all(bucket):
            raise ValueError("set all four of S3_ENDPOINT, S3_BUCKET, S3_ACCESS_KEY and S3_SECRET_KEY, or none of them")
        known = {"local": True, "cloudinary": bool(self.CLOUDINARY_CLOUD_NAME), "s3": bool(self.S3_ENDPOINT)}
        if known["cloudinary"] and known["s3"] and not self.IMAGE_STORE:
            raise ValueError("IMAGE_STORE must say where new images go: both CLOUDINARY_* and S3_* are set")
        if not known.get(self.IMAGE_STORE, True):
            raise ValueError(f"IMAGE_STORE is {self.IMAGE_STORE}, but {self.IMAGE_STORE.upper()}_* are not set")
        return self

    @property
    def production(self) -> bool:
        """Whether the server is in use, and not in development or under test."""
        return self.FLASK_ENV == "production"


def is_known_zone(name: str) -> bool:
    """Return whether this is an IANA time zone. `localtime` is another zone on each machine, and `Factory` is none."""
    try:
        return name not in ("localtime", "Factory") and bool(ZoneInfo(name))
    except (KeyError, ValueError, OSError):
        return False


def read_settings(overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the checked settings for `app.config`, and any others of `instance/config.py` and `overrides`.

    With `FLASK_ENV="testing"` in `overrides`, `.env` and the environment are not read: tests do not depend on them.
    Makes the instance folder, and in development the secrets in it.
    Raises `ConfigError`, which names the setting and what to do.
    """
    overrides = dict(overrides or {})
    known: dict[str, Any] = {}
    if overrides.get("FLASK_ENV") != "testing":
        environment = {**dotenv_values(ROOT / ".env"), **os.environ}
        known = {name: value for name in Settings.model_fields if (value := environment.get(name))}
    instance = Path(overrides.get("INSTANCE_PATH") or known.get("INSTANCE_PATH") or ROOT / "instance").resolve()
    instance_config = Config(instance)
    instance_config.from_pyfile("config.py", silent=True)
    given = {**known, **instance_config, **overrides, "INSTANCE_PATH": instance}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(
                f"Setting {e['loc'][0] if e['loc'] else _first_setting(e['msg'])}: "
                f"{e['msg'].removeprefix('Value error, ')}."
                for e in error.errors()
            )
        ) from None
    if settings.FLASK_ENV == "testing" != overrides.get("FLASK_ENV"):
        raise ConfigError("Setting FLASK_ENV: `testing` is the tests' own; set it to `development` or `production`.")
    instance.mkdir(mode=0o700, parents=True, exist_ok=True)
    if instance == ROOT / "instance":
        instance.chmod(0o700)  # git makes the folder readable for every user of the machine
    if settings.production:
        _check_production(settings)
    elif not all(getattr(settings, name) for name in SECRETS):
        generated = _generated_secrets(instance)
        settings = settings.model_copy(update={n: getattr(settings, n) or generated[n] for n in SECRETS})
    flask_settings = _flask_settings(settings)
    options = engine_options(flask_settings["SQLALCHEMY_DATABASE_URI"], settings.WEB_THREADS)
    others = {name: value for name, value in given.items() if name not in Settings.model_fields}
    if standby := settings.DATABASE_READ_URL:
        flask_settings["SQLALCHEMY_BINDS"] = {"standby": {"url": standby, **standby_options(standby)}}
    return {"SQLALCHEMY_ENGINE_OPTIONS": options, **settings.model_dump(), **flask_settings, **others}


def _first_setting(text: str) -> str:
    """Return the setting that a sentence about several settings names first."""
    named: list[str] = re.findall(r"\w+", text)
    return next(name for name in named if name in Settings.model_fields)


def _check_production(settings: Settings) -> None:
    for name in SECRETS:
        if len(getattr(settings, name).encode()) < SHORTEST_SECRET:
            raise ConfigError(
                f"{name} is missing or shorter than {SHORTEST_SECRET} bytes. Set it to the output of: "
                "python -c 'import secrets; print(secrets.token_urlsafe(48))'"
                " (or set FLASK_ENV=development to try the server out)."
            )
    if len({getattr(settings, name) for name in SECRETS}) < len(SECRETS):
        raise ConfigError(f"{' and '.join(SECRETS)} are the same. Give each a value of its own.")
    if not settings.TIMEZONE:
        raise ConfigError("TIMEZONE is missing. Set it to the clinic's IANA time zone, Africa/Nairobi say.")
    if not settings.PUBLIC_URL:
        raise ConfigError("PUBLIC_URL is missing. Set it to the address clients use, https://api.clinic.example say.")


def _generated_secrets(instance: Path) -> dict[str, str]:
    """Return the secrets of development. The first call writes them to the instance folder, for its owner alone."""
    path = instance / "secrets.env"
    if not path.exists():
        descriptor, draft = tempfile.mkstemp(dir=instance)  # mode 0600
        with os.fdopen(descriptor, "w") as file:
            file.writelines(f"{name}={secrets.token_urlsafe(48)}\n" for name in SECRETS)
        try:
            os.link(draft, path)  # never replaces a file: two processes that start together use the same secrets
        except FileExistsError:
            pass
        finally:
            os.unlink(draft)
    return {name: value or "" for name, value in dotenv_values(path).items()}


def _flask_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that Flask and its extensions read under names of their own, or that have a late default."""
    reset = settings.PASSWORD_RESET_URL or f"{settings.PUBLIC_URL or 'http://localhost:3000'}/reset-password"
    return {
        "TIMEZONE": settings.TIMEZONE or "UTC",
        "SIGNUP": settings.SIGNUP or ("approval" if settings.production else "open"),
        "PASSWORD_RESET_URL": reset,
        "TESTING": settings.FLASK_ENV == "testing",
        "SQLALCHEMY_DATABASE_URI": settings.DATABASE_URL or f"sqlite:///{settings.INSTANCE_PATH / 'hosi.db'}",
        "BCRYPT_HANDLE_LONG_PASSWORDS": True,  # SHA-256 first: bcrypt itself reads 72 bytes and no NUL
        "JWT_ALGORITHM": "HS256",
        "JWT_ACCESS_TOKEN_EXPIRES": timedelta(minutes=30),
        "JWT_REFRESH_TOKEN_EXPIRES": timedelta(days=30),
    }
