"""Settings: their sources, the values that stop the start, and a real server that runs with them."""

import io
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

import config
from config import ConfigError, Settings

ROOT = Path(config.__file__).parent
PRODUCTION = {
    "FLASK_ENV": "production",
    "SECRET_KEY": "a" * 32,
    "JWT_SECRET_KEY": "b" * 32,
    "AUDIT_KEY": "c" * 32,
    "TIMEZONE": "Africa/Nairobi",
    "PUBLIC_URL": "https://api.clinic.example",
}
DEVELOPMENT = {"FLASK_ENV": "development"}
Read = Callable[..., dict[str, Any]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkout: nothing in the environment, no .env, no instance folder."""
    monkeypatch.setattr(config, "ROOT", tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def read(home: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """The settings that the server takes when the environment says this."""

    def with_environment(**environment: str) -> dict[str, Any]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return config.read_settings()

    return with_environment


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# --- One list of settings ---


def example() -> dict[str, str | None]:
    """The settings of .env.example, those that are switched off by a # included."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    return dotenv_values(stream=io.StringIO(re.sub(r"^#(?=[A-Z0-9_]+=)", "", text, flags=re.MULTILINE)))


def test_the_example_names_every_setting_and_no_other() -> None:
    assert example().keys() == Settings.model_fields.keys()


def test_the_example_says_of_each_setting_what_it_is() -> None:
    blocks = (ROOT / ".env.example").read_text(encoding="utf-8").strip().split("\n\n")[1:]
    assert len(blocks) == len(Settings.model_fields)
    for block, (name, field) in zip(blocks, Settings.model_fields.items(), strict=True):
        assert re.fullmatch(f"# (.+)\n#?{name}=.*", block), block
        assert block.startswith(f"# {str(field.description).replace('`', '')}\n")


def test_the_example_shows_the_defaults() -> None:
    written = {name: value for name, value in example().items() if value and name != "FLASK_ENV"}
    assert Settings.model_validate(written) == Settings()


def test_the_example_is_for_development() -> None:
    assert dotenv_values(ROOT / ".env.example") == DEVELOPMENT


def rows_of_the_page() -> list[tuple[str, str, str]]:
    """The table of docs/settings.md: name, default and description."""
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([A-Z0-9_]+)` \| (.*?) ?\| (.+) \|$", page, re.MULTILINE)


def test_the_page_of_the_settings_has_every_setting_and_no_other() -> None:
    assert [name for name, _, _ in rows_of_the_page()] == list(Settings.model_fields)


def test_the_page_of_the_settings_says_of_each_what_it_is() -> None:
    written = {name: description for name, _, description in rows_of_the_page()}
    assert written == {name: field.description for name, field in Settings.model_fields.items()}


def test_the_page_of_the_settings_shows_the_defaults() -> None:
    written = {name: default.strip("`") for name, default, _ in rows_of_the_page()}
    origins, ports = re.fullmatch(r"(.+), ports (.+)", written.pop("CORS_ORIGINS")).groups()  # type: ignore[union-attr]
    pairs = {f"http://{host}:{port}" for host in origins.split(" and ") for port in re.findall(r"\d+", ports)}
    assert pairs == set(Settings().CORS_ORIGINS)
    assert written.pop("INSTANCE_PATH") == "./instance"
    assert Settings.model_validate({name: value for name, value in written.items() if value}) == Settings()


# --- Where they come from ---


def test_nothing_said_means_production_which_does_not_start_without_secrets(read: Read) -> None:
    with pytest.raises(ConfigError, match="SECRET_KEY"):
        read()


def test_dotenv_is_read(home: Path, read: Read) -> None:
    write(home / ".env", "FLASK_ENV=development\nTIMEZONE=Africa/Nairobi\n")
    assert read()["TIMEZONE"] == "Africa/Nairobi"


def test_the_environment_wins_over_dotenv(home: Path, read: Read) -> None:
    write(home / ".env", "FLASK_ENV=development\nTIMEZONE=Africa/Nairobi\nPORT=5001\n")
    setting = read(TIMEZONE="Europe/Madrid")
    assert (setting["TIMEZONE"], setting["PORT"]) == ("Europe/Madrid", 5001)


def test_the_instance_folder_wins_over_both(home: Path, read: Read) -> None:
    write(home / ".env", "FLASK_ENV=development\nTIMEZONE=Africa/Nairobi\n")
    write(home / "instance" / "config.py", "TIMEZONE = 'Asia/Tokyo'\nJWT_ALGORITHM = 'HS512'\n")
    setting = read(TIMEZONE="Europe/Madrid")
    assert setting["TIMEZONE"] == "Asia/Tokyo"
    assert setting["JWT_ALGORITHM"] == "HS512"  # of what Flask and its extensions read, too


def test_the_instance_folder_may_be_elsewhere(home: Path, read: Read) -> None:
    write(home / "elsewhere" / "config.py", "TIMEZONE = 'Asia/Tokyo'\n")
    setting = read(**DEVELOPMENT, INSTANCE_PATH=str(home / "elsewhere"))
    assert setting["TIMEZONE"] == "Asia/Tokyo"
    assert setting["SQLALCHEMY_DATABASE_URI"] == f"sqlite:///{home / 'elsewhere' / 'hosi.db'}"
    assert not (home / "instance").exists()


def test_an_empty_setting_is_none(read: Read) -> None:
    assert read(**DEVELOPMENT, TIMEZONE="", PORT="")["TIMEZONE"] == "UTC"


@pytest.mark.parametrize(
    ("word", "meaning"),
    [("false", False), ("False", False), ("0", False), ("no", False), ("off", False), ("true", True), ("1", True)],
)
def test_a_boolean_is_read_as_one(read: Read, word: str, meaning: bool) -> None:
    assert read(**DEVELOPMENT, RATELIMIT_ENABLED=word)["RATELIMIT_ENABLED"] is meaning


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_postgres_means_psycopg2(read: Read, scheme: str) -> None:
    setting = read(**DEVELOPMENT, DATABASE_URL=f"{scheme}://me:pw@db/clinic?sslmode=require")
    assert setting["SQLALCHEMY_DATABASE_URI"] == "postgresql+psycopg2://me:pw@db/clinic?sslmode=require"


def test_a_file_of_sqlite_is_left_as_it_is(read: Read) -> None:
    assert read(**DEVELOPMENT, DATABASE_URL="sqlite:////srv/x.db")["SQLALCHEMY_DATABASE_URI"] == "sqlite:////srv/x.db"


def test_earlier_keys_of_the_history_are_separated_by_commas(read: Read) -> None:
    assert read(**DEVELOPMENT, AUDIT_KEY_PREVIOUS="first, second")["AUDIT_KEY_PREVIOUS"] == ["first", "second"]


def test_cloudinary_may_be_set_by_one_url(read: Read) -> None:
    setting = read(**DEVELOPMENT, CLOUDINARY_URL="cloudinary://123:se%2Bcret@Clinic-1")
    assert [setting[f"CLOUDINARY_{part}"] for part in ("API_KEY", "API_SECRET", "CLOUD_NAME")] == [
        "123",
        "se+cret",
        "Clinic-1",
    ]


S3 = {"S3_ENDPOINT": "https://s3.example/", "S3_BUCKET": "images", "S3_ACCESS_KEY": "key", "S3_SECRET_KEY": "secret"}


def test_a_server_on_s3_needs_no_region(read: Read) -> None:
    setting = read(**DEVELOPMENT, **S3)
    assert (setting["S3_ENDPOINT"], setting["S3_REGION"]) == ("https://s3.example", "us-east-1")


def test_with_two_stores_it_is_said_where_new_images_go(read: Read) -> None:
    both = {**DEVELOPMENT, **S3, "CLOUDINARY_URL": "cloudinary://123:secret@clinic"}
    with pytest.raises(ConfigError, match="Setting IMAGE_STORE: IMAGE_STORE must say where new images go"):
        read(**both)
    assert read(**both, IMAGE_STORE="s3")["IMAGE_STORE"] == "s3"


@pytest.mark.parametrize(("given", "meaning"), [("KE", "KE"), ("ke", "KE"), ("", "")])
def test_the_region_of_phone_numbers_is_a_country_or_none(read: Read, given: str, meaning: str) -> None:
    assert read(**DEVELOPMENT, PHONE_REGION=given)["PHONE_REGION"] == meaning


def test_origins_are_separated_by_commas(read: Read) -> None:
    setting = read(**DEVELOPMENT, CORS_ORIGINS="https://a.example, https://b.example,")
    assert setting["CORS_ORIGINS"] == ["https://a.example", "https://b.example"]


def test_sign_up_is_open_in_development_and_by_approval_in_production(read: Read) -> None:
    assert read(**DEVELOPMENT)["SIGNUP"] == "open"
    assert read(**PRODUCTION)["SIGNUP"] == "approval"
    assert read(**PRODUCTION, SIGNUP="closed")["SIGNUP"] == "closed"


# --- What stops the start ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SECRET_KEY", ""),
        ("SECRET_KEY", "a" * 31),
        ("JWT_SECRET_KEY", ""),
        ("JWT_SECRET_KEY", "changeme"),
        ("JWT_SECRET_KEY", PRODUCTION["SECRET_KEY"]),
        ("AUDIT_KEY", ""),
        ("TIMEZONE", ""),
        ("PUBLIC_URL", ""),
        ("PUBLIC_URL", "api.clinic.example"),
    ],
)
def test_production_does_not_start_with_a_weak_setting_and_says_which(
    home: Path, read: Read, name: str, value: str
) -> None:
    with pytest.raises(ConfigError, match=name) as stop:
        read(**{**PRODUCTION, name: value})
    assert len(str(stop.value)) > 40
    assert not value or value not in str(stop.value)
    assert not list(home.rglob("*.env"))


def test_production_starts_with_settings_that_are_strong(home: Path, read: Read) -> None:
    assert read(**PRODUCTION)["SECRET_KEY"] == PRODUCTION["SECRET_KEY"]
    assert not list(home.rglob("*.env"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TIMEZONE", "Mars/Olympus"),
        ("PHONE_REGION", "Kenya"),
        ("PHONE_REGION", "UK"),
        ("TIMEZONE", "../../etc/passwd"),
        ("PORT", "many"),
        ("PORT", "70000"),
        ("RATELIMIT_ENABLED", "perhaps"),
        ("SIGNUP", "sometimes"),
        ("FLASK_ENV", "staging"),
        ("FLASK_ENV", "testing"),  # the tests' own: it would lift the checks of production
        ("IMAGE_LINK_TTL", "1"),
        ("LOG_LEVEL", "LOUD"),
        ("CLOUDINARY_URL", "https://example.com"),
        ("CLOUDINARY_CLOUD_NAME", "without-a-key"),
        ("S3_ENDPOINT", "minio:9000"),
        ("S3_ENDPOINT", "https://minio.clinic.example/images"),
        ("S3_ENDPOINT", "https://minio.clinic.example:70000"),
        ("S3_BUCKET", "Images"),
        ("S3_ACCESS_KEY", "alone"),
        ("IMAGE_STORE", "s3"),
        ("IMAGE_STORE", "cloudinary"),
        ("IMAGE_STORE", "floppy"),
        ("MAIL_PORT", "-1"),
        ("DATABASE_URL", "hosi"),
        ("DATABASE_URL", "mysql://db/clinic"),
        ("DATABASE_URL", "postgresql+psycopg://db/clinic"),
        ("DATABASE_READ_URL", "postgresql://standby/hosi"),  # of which primary?
        ("DATABASE_READ_URL", "sqlite:///copy.db"),
        ("RATELIMIT_LOGIN", "often"),
        ("RATELIMIT_LOGIN", "0"),
        ("SHED_AFTER_MS", "0"),
        ("RATELIMIT_STORAGE_URI", "redis.clinic.example"),
        ("RATELIMIT_STORAGE_URI", "mongodb://me:secret@db"),
    ],
)
def test_a_setting_that_makes_no_sense_stops_the_start_and_is_named(read: Read, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"Setting {name.partition('_')[0]}") as stopped:
        read(**{**DEVELOPMENT, name: value})
    assert "secret" not in str(stopped.value)


# --- Development's secrets ---


def test_development_makes_secrets_once_for_the_owner_alone(home: Path, read: Read) -> None:
    first = read(**DEVELOPMENT)
    [kept] = (home / "instance").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    secrets = {name: first[name] for name in config.SECRETS}
    assert len(set(secrets.values())) == len(secrets)
    assert all(len(secret) >= 32 for secret in secrets.values())
    assert {name: read()[name] for name in secrets} == secrets


def test_a_secret_that_is_set_wins_over_the_one_that_was_made(read: Read) -> None:
    made = read(**DEVELOPMENT)
    setting = read(SECRET_KEY="mine")
    assert setting["SECRET_KEY"] == "mine"
    assert setting["JWT_SECRET_KEY"] == made["JWT_SECRET_KEY"]


# --- The server, really serving: the checkout's files in a folder of their own ---


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for path in [*ROOT.glob("*.py"), ROOT / ".flaskenv", ROOT / ".env.example"]:
        shutil.copy(path, folder)
    for name in ("server", "clinic", "migrations", "static"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "instance").mkdir()
    shutil.copy(folder / ".env.example", folder / ".env")  # as `make run` does
    return folder


def environment(**settings: str) -> dict[str, str]:
    """A shell in which nothing of ours is set."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "SYSTEMROOT") if name in os.environ}
    return {**kept, "PYTHONPATH": "", **settings}


def run(checkout: Path, *command: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *command],
        cwd=checkout,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=120,
    )


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(checkout: Path, port: int, *command: str, **settings: str) -> Iterator[str]:
    """The server's address, once it answers."""
    log = (checkout / f"log-{port}").open("w+")
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=checkout,
        env=environment(**settings),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 60
        while not answers(url):
            said = (checkout / log.name).read_text()
            assert process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.05)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        log.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:  # nobody listens yet, or is slow to answer
        return False


def post(url: str, body: dict[str, Any], token: str = "") -> dict[str, Any]:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as response:
        return dict(json.load(response))


@pytest.fixture(scope="module")
def upgraded(checkout: Path) -> Path:
    done = run(checkout, "-m", "flask", "db", "upgrade")
    assert done.returncode == 0, done.stderr
    assert (checkout / "instance" / "hosi.db").exists()
    return checkout


def test_a_command_leaves_no_part_of_the_database_beside_it(upgraded: Path) -> None:
    """Somebody who copies hosi.db alone while nothing runs has all of it."""
    done = run(upgraded, "-m", "flask", "audit", "verify")
    assert done.stdout == "The history is whole.\n"
    assert not list((upgraded / "instance").glob("hosi.db-[ws]*"))


SERVERS: dict[str, Callable[[int], tuple[list[str], dict[str, str]]]] = {
    "flask run": lambda port: (["-m", "flask", "run", "--port", str(port)], {}),
    "python app.py": lambda port: (["app.py"], {"PORT": str(port)}),
    "serve.py": lambda port: (["serve.py"], {"PORT": str(port), "WEB_CONCURRENCY": "2"}),
}


@pytest.mark.parametrize("server", SERVERS)
def test_the_server_serves(upgraded: Path, server: str) -> None:
    port = free_port()
    command, settings = SERVERS[server](port)
    with serving(upgraded, port, *command, **settings) as url:
        with urllib.request.urlopen(f"{url}/readyz") as ready:
            assert json.load(ready)["status"] == "ready"
        account = {"email": f"{port}@clinic.test", "password": "correct horse battery"}
        post(f"{url}/signup", {"first_name": "Neema", "last_name": "Otieno", **account})
        token = post(f"{url}/login", account)["access_token"]
        patient = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712"}
        assert post(f"{url}/patients", patient, token)["mrn"]
        assert b" 400 " in sent_raw(port, BROKEN_CHUNKS).partition(b"\r\n")[0]
    said = (upgraded / f"log-{port}").read_text()
    assert "images are kept on the local disk" in said
    assert "Traceback" not in said


BROKEN_CHUNKS = (
    b"POST /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n{}\r\n0\r\n\r\n"
)


def sent_raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize("command", [["-m", "flask", "routes"], ["app.py"], ["serve.py"]])
def test_a_start_in_production_without_secrets_ends_with_one_sentence(checkout: Path, command: list[str]) -> None:
    ended = run(checkout, *command, FLASK_ENV="production")
    assert ended.returncode != 0
    assert "SECRET_KEY is missing" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("server", SERVERS)
def test_a_wrong_audit_key_ends_the_start_with_one_sentence(upgraded: Path, server: str) -> None:
    port = free_port()
    person = [
        "--first-name=Ada",
        "--last-name=Otieno",
        f"--email={port}@clinic.test",
        "--password=correct horse battery",
    ]
    made = run(upgraded, "-m", "flask", "create-admin", *person)
    assert made.returncode == 0, made.stderr
    command, settings = SERVERS[server](port)
    ended = run(upgraded, *command, **settings, AUDIT_KEY="a wrong key of thirty-two bytes and more")
    assert ended.returncode != 0
    assert "AUDIT_KEY is not the key that the record history in this database was written with." in ended.stderr
    assert "Traceback" not in ended.stderr


def test_processes_that_start_at_once_agree_on_the_secrets(checkout: Path) -> None:
    """As the server's workers do on a fresh machine."""
    code = "import config; print('ready', flush=True); input(); print(config.read_settings()['SECRET_KEY'])"
    settings = {"FLASK_ENV": "development", "INSTANCE_PATH": str(checkout / "fresh")}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=checkout,
            env=environment(**settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    secrets = {process.communicate(timeout=60)[0] for process in started}
    assert len(secrets) == 1
    assert len(secrets.pop().strip()) >= 32
    assert [path.name for path in (checkout / "fresh").iterdir()] == ["secrets.env"]
