"""`make clients`: tries generators of clients on the OpenAPI document of a running server, and prints a table.

Each client compiles under `tsc --strict`, signs up and in, creates a patient of three fields, sends the record back,
uploads two images, books an appointment and finds it. Generated code goes into a temporary folder.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from urllib.error import URLError
from urllib.request import urlopen

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NODE, PYTHON = HERE / "node_modules/.bin", HERE / ".venv/bin"
IMAGES = [ROOT / "docs/images" / name for name in ("ecg.png", "chest.png")]
SECONDS = 300  # for one command

Command = tuple[str | Path, ...]


@dataclass(frozen=True)
class Generator:
    """A generator: its package, the command that generates, and the driver that uses the client."""

    name: str
    package: str
    generate: Command
    driver: str = ""  # of the folder `drivers`
    run: Command = ()  # instead of a driver


ORVAL = (NODE / "orval", "--config", "orval.config.cjs")
GENERATORS = (
    Generator(
        "openapi-typescript + openapi-fetch",
        "openapi-typescript",
        ("node", "openapi-typescript.mjs"),
        "openapi-typescript.ts",
    ),
    Generator("orval: fetch + zod", "orval", ORVAL, "orval-fetch.ts"),
    Generator("orval: axios", "orval", ORVAL, "orval-axios.ts"),
    Generator("hey-api: fetch + zod", "@hey-api/openapi-ts", (NODE / "openapi-ts",), "hey-api.ts"),
    Generator(
        "openapi-generator: typescript-axios",
        "openapi-generator-cli",
        (
            *(PYTHON / "openapi-generator-cli", "generate", "-g", "typescript-axios", "-i", "openapi.json"),
            *("-o", "generated", "--additional-properties=useSingleRequestParameter=true"),
        ),
        "typescript-axios.ts",
    ),
    Generator(
        "openapi-python-client",
        "openapi-python-client",
        (
            *(PYTHON / "openapi-python-client", "generate", "--path", "openapi.json"),
            *("--output-path", "generated", "--overwrite", "--meta", "none"),
        ),
        "openapi-python-client.py",
    ),
    Generator("Redocly lint", "@redocly/cli", (NODE / "redocly", "lint", "openapi.json", "--config", "redocly.yaml")),
    Generator(
        "Spectral lint",
        "@stoplight/spectral-cli",
        (NODE / "spectral", "lint", "openapi.json", "--ruleset", "spectral.yaml", "--fail-severity", "warn"),
    ),
    Generator(
        "Bruno import",
        "@usebruno/cli",
        (
            *(NODE / "bru", "import", "openapi", "--source", "openapi.json", "--output", "generated"),
            *("--collection-name", "hosi", "--collection-format", "bru"),
        ),
        run=("sh", "-c", f"cd generated/hosi && '{NODE / 'bru'}' run Server/*process*.bru --env 'Environment 1'"),
    ),
    Generator(
        "openapi-to-postman",
        "openapi-to-postmanv2",
        (NODE / "openapi2postmanv2", "-s", "openapi.json", "-o", "generated/collection.json", "-p"),
    ),
)


class Failed(Exception):
    """A command failed; the text is what it said."""


def run(command: Command, folder: Path, **environment: str) -> None:
    """Run a command in a folder. Raises `Failed`."""
    settings = {**os.environ, "PYTHONPATH": "", "CI": "true", "NO_COLOR": "1", **environment}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=settings, capture_output=True, text=True, timeout=SECONDS
    )
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))}\n{done.stdout[-3_000:]}{done.stderr[-3_000:]}")


def install() -> None:
    """Install the pinned generators beside this file, unless they are there."""
    if not shutil.which("npm"):
        sys.exit("npm is missing. Install Node.js 20.19 or newer, which brings npm, and run `make clients` again.")
    stamps = {
        HERE / "package.json": ("npm", "install", "--no-package-lock", "--no-fund", "--no-audit"),
        HERE / "requirements.txt": (PYTHON / "pip", "install", "--quiet", "-r", "requirements.txt"),
    }
    for pins, command in stamps.items():
        stamp = HERE / "node_modules" / f".{pins.name}.installed"
        if stamp.exists() and stamp.read_text() == pins.read_text():
            continue
        print(f"Installing what {pins.name} names …", flush=True)
        if pins.name == "requirements.txt":
            venv.create(HERE / ".venv", with_pip=True)
        run(command, HERE)
        stamp.write_text(pins.read_text())


def versions() -> dict[str, str]:
    """Return the pinned version of each package."""
    found: dict[str, str] = json.loads((HERE / "package.json").read_text())["dependencies"]
    pins = re.findall(r"^([\w-]+)(?:\[.*\])?==(\S+)", (HERE / "requirements.txt").read_text(), re.MULTILINE)
    return found | dict(pins)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Serve an empty clinic of Nairobi from a folder. Yield its address."""
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    settings = {
        "FLASK_ENV": "development",
        "FLASK_APP": "app.py",
        "INSTANCE_PATH": str(folder),
        "DATABASE_URL": "",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "PUBLIC_URL": address,
        "TIMEZONE": "Africa/Nairobi",
        "SIGNUP": "open",
        "RATELIMIT_ENABLED": "false",
        "CLOUDINARY_URL": "",
        "CLOUDINARY_CLOUD_NAME": "",
    }
    run((sys.executable, "-m", "flask", "db", "upgrade"), ROOT, **settings)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "serve.py"], cwd=ROOT, env={**os.environ, **settings}, stdout=log, stderr=log
        )
    try:
        wait_for(f"{address}/readyz")
        yield address
    finally:
        process.terminate()
        process.wait(60)


def wait_for(address: str) -> None:
    """Return when the address answers. Raises `Failed` after half a minute."""
    for _ in range(150):
        try:
            with urlopen(address):
                return
        except URLError:
            time.sleep(0.2)
    raise Failed(f"{address} does not answer")


def prepare(generator: Generator, folder: Path, document: bytes) -> None:
    """Fill the folder with the document, the configurations and the driver."""
    (folder / "generated").mkdir(parents=True)
    (folder / "openapi.json").write_bytes(document)
    (folder / "node_modules").symlink_to(HERE / "node_modules")
    for file in HERE.glob("*.*"):
        if file.suffix in (".json", ".yaml", ".mjs", ".cjs") and file.name != "package.json":
            shutil.copy(file, folder)
    if generator.driver:
        shutil.copy(HERE / "drivers" / "story.ts", folder)
        shutil.copy(HERE / "drivers" / generator.driver, folder)


def check_requests(folder: Path, document: bytes) -> None:
    """Raise `Failed` if a collection of Bruno or Postman has not every operation, or no field for images."""
    operations = sum(len(item) for item in json.loads(document)["paths"].values())
    bruno = [file.read_text() for file in folder.glob("generated/hosi/*/*.bru")]
    postman = [file.read_text() for file in folder.glob("generated/collection.json")]
    for texts, request, images in (
        (bruno, r"^(?:get|post|put|patch|delete) \{", r"^  images:"),
        (postman, r'"request": \{\s*"name"', r'"key": "images"'),
    ):
        found = [len(re.findall(word, "\n".join(texts), re.MULTILINE)) for word in (request, images)]
        if texts and (found[0] != operations or not found[1]):
            raise Failed(f"{found[0]} requests for {operations} operations, {found[1]} fields for images")


def steps(generator: Generator, folder: Path, document: bytes, address: str) -> Iterator[str]:
    """Yield each column of the table that applies, when it is done. Raises `Failed`."""
    prepare(generator, folder, document)
    run(generator.generate, folder)
    check_requests(folder, document)
    yield "generates"
    settings = {"ADDRESS": address, "IMAGES": ":".join(map(str, IMAGES))}
    if generator.driver.endswith(".ts"):
        run((NODE / "tsc", "--project", "."), folder)
        yield "compiles"
        bundle = ("--bundle", "--platform=node", "--outfile=driver.cjs", "--log-level=warning")
        run((NODE / "esbuild", generator.driver, *bundle), folder)
        run(("node", "driver.cjs"), folder, **settings)
        yield "runs"
    elif generator.driver:
        run((PYTHON / "python", "-m", "compileall", "-q", "generated"), folder)
        yield "compiles"
        run((PYTHON / "python", generator.driver), folder, **settings)
        yield "runs"
    elif generator.run:
        run(generator.run, folder)
        yield "runs"


COLUMNS = ("generates", "compiles", "runs")


def applies(generator: Generator) -> set[str]:
    """Return the columns that a generator has: a linter neither compiles nor runs."""
    return {"generates", *(("compiles", "runs") if generator.driver else ()), *(("runs",) if generator.run else ())}


def main() -> int:
    """Try every generator, or those that the command names. Return 1 if one failed."""
    install()
    wanted = sys.argv[1:]
    chosen = [one for one in GENERATORS if not wanted or any(word in one.name for word in wanted)]
    rows, faults = [], []
    with tempfile.TemporaryDirectory(prefix="hosi-clients-") as name:
        folder = Path(name)
        (folder / "instance").mkdir()
        with server(folder / "instance") as address:
            with urlopen(f"{address}/openapi.json") as answer:
                document = answer.read()
            for number, generator in enumerate(chosen):
                print(f"{generator.name} …", flush=True)
                done: set[str] = set()
                try:
                    for column in steps(generator, folder / str(number), document, address):
                        done.add(column)
                except (Failed, subprocess.TimeoutExpired) as error:
                    faults.append(f"--- {generator.name}: {error}")
                rows.append((generator, done))
    print("\n".join(["", *table(rows), "", *faults]))
    return 1 if faults else 0


def table(rows: list[tuple[Generator, set[str]]]) -> list[str]:
    """Return the lines of the table, in Markdown."""
    lines = ["| generator | version | generates | compiles | runs |", "|---|---|---|---|---|"]
    for generator, done in rows:
        marks = (("yes" if column in done else "NO") if column in applies(generator) else "–" for column in COLUMNS)
        lines.append(f"| {generator.name} | {versions()[generator.package]} | {' | '.join(marks)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
