"""The documents: no link is dead, every setting and route is documented, and the commands work."""

import ast
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from string import Template
from typing import Any

import click
import pytest
from client import Client
from factories import picture, token_in
from flask import Flask

import cli

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [path for pattern in ("*.py", "server/**/*.py", "clinic/**/*.py") for path in sorted(ROOT.glob(pattern))]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """Return the page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text_of(path), flags=re.MULTILINE | re.DOTALL)


ALL_PAGES = "\n".join(map(text_of, PAGES))


# --- Links ---


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_readme_links_to_every_page() -> None:
    links = re.findall(r"\]\((docs/[^)#]+\.md)", text_of(README))
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= set(links)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "instance")
    names = re.findall(rf"`((?:{folders})/[\w./-]*|[\w-]+\.(?:py|md|in|txt|toml))`", prose(page))
    assert [name for name in names if not (ROOT / name).exists()] == []


# --- Nothing is undocumented ---


def make_targets() -> Iterator[str]:
    for names in re.findall(r"^([a-z ]+):.*## ", text_of(ROOT / "Makefile"), re.MULTILINE):
        yield from names.split()


@pytest.mark.parametrize("target", list(make_targets()))
def test_every_make_target_is_in_the_readme(target: str) -> None:
    assert f"`make {target}`" in text_of(README)


def flask_commands(commands: Iterable[click.Command], before: str = "flask") -> Iterator[tuple[str, click.Command]]:
    for command in commands:
        name = f"{before} {command.name}"
        if isinstance(command, click.Group):
            yield from flask_commands(command.commands.values(), name)
        else:
            yield name, command


@pytest.mark.parametrize(("name", "command"), list(flask_commands(cli.COMMANDS)))
def test_every_flask_command_is_in_the_readme_and_its_options_in_a_page(name: str, command: click.Command) -> None:
    assert f"`{name}" in text_of(README)
    options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
    assert [option for option in options if option not in ALL_PAGES] == []


def test_every_module_has_its_row_in_the_architecture() -> None:
    rows = set(re.findall(r"^\| `([\w./]+)` \|", text_of(ROOT / "docs/architecture.md"), re.MULTILINE))
    modules = {str(path.relative_to(ROOT)) for path in SOURCES if path.name != "__init__.py"}
    modules = {"server/pictures/" if name.startswith("server/pictures/") else name for name in modules}
    assert rows == modules


# --- Sentences that the server says ---


def sentences() -> Iterator[str]:
    """Yield every text in the source code; "\0" stands for a value within an f-string."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(text_of(path))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [getattr(part, "value", None) for part in parts]
            if any(isinstance(text, str) for text in texts):
                yield "".join(text if isinstance(text, str) else "\0" for text in texts)


def says(sentence: str, known: str) -> bool:
    """Whether a text of the source code has the sentence. A value in it is a few words."""
    if sentence in known:
        return True
    begins = known.partition("\0")[0]
    pattern = re.escape(known).replace("\0", r"[\w ]+")
    return len(begins) > 6 and re.fullmatch(pattern, f"{sentence}.") is not None


def test_every_answer_among_the_problems_is_one_that_the_server_gives() -> None:
    told = re.findall(r"^\| [45]\d\d `([^`…]+)…?`", text_of(ROOT / "docs/problems.md"), re.MULTILINE)
    assert len(told) > 8
    known = list(sentences())
    assert [sentence for sentence in told if not any(says(sentence.strip(), text) for text in known)] == []


# --- Commands that work ---


class Shell:
    """Runs the commands of a page's blocks: curl, `flask`, and assignments of variables.

    The page writes `NAME=...` where a reader puts a value in; `answers` has such values by name.
    """

    def __init__(self, app: Flask, address: str, folder: Path) -> None:
        self.app, self.address, self.folder = app, address, folder
        self.variables: dict[str, str] = {}
        self.answers: dict[str, Callable[[], str]] = {}
        self.last: Any = None  # the JSON of the last answer, or what the last command printed

    def run(self, page: Path, *beginnings: str) -> int:
        """Run the blocks that have a line with one of these beginnings, and return the number of requests."""
        requests = 0
        for block in re.findall(r"^```sh\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL):
            if any(line.startswith(beginnings) for line in block.splitlines()):
                for words in commands(block):
                    requests += words[0] == "curl"
                    self._run(words)
        return requests

    def _run(self, words: list[str]) -> None:
        words = [Template(word).safe_substitute(self.variables) for word in words if word != "export"]
        name, sign, value = words[0].partition("=")
        if sign:
            self.variables[name] = self.answers[name]() if value in ("...", "…") else value
        elif words[0] == "curl":
            self._curl([word.replace("http://127.0.0.1:5000", self.address) for word in words[1:]])
        elif words[0] == "flask":
            result = self.app.test_cli_runner().invoke(args=words[1:], input="four violet herons\n" * 2)
            assert result.exit_code == 0, (words, result.output)
            self.last = result.output

    def _curl(self, arguments: list[str]) -> None:
        sent = subprocess.run(
            ["curl", "--write-out", "\n%{http_code}", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert sent.returncode == 0, (arguments, sent.stderr)
        body, _, status = sent.stdout.rpartition("\n")
        assert status in ("200", "201"), (arguments, body)
        self.last = json.loads(body)


def commands(block: str) -> Iterator[list[str]]:
    """Yield the words of each command, which may go over several lines."""
    command = ""
    for line in block.splitlines():
        command += line.removesuffix("\\") if line.endswith("\\") else f"{line}\n"
        if line.endswith("\\"):
            continue
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        command = ""
        if words:
            yield words


@pytest.fixture
def shell(app: Flask, address: str, tmp_path: Path) -> Shell:
    for name in ("front.jpg", "side.jpg"):
        (tmp_path / name).write_bytes(picture("JPEG"))
    return Shell(app, address, tmp_path)


on_one_engine = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@on_one_engine
def test_the_commands_of_the_readme_and_of_the_images_work(shell: Shell) -> None:
    shell.answers["TOKEN"] = lambda: str(shell.last["access_token"])
    assert shell.run(README, "curl") == 5
    assert shell.run(ROOT / "docs/images.md", "curl") == 1


@on_one_engine
def test_the_commands_of_the_accounts_work(shell: Shell, app: Flask, admin: Client) -> None:
    def other_login() -> str:
        return str(next(login["id"] for login in shell.last if not login["current"]))

    def account() -> str:
        return str(next(user["id"] for user in admin.get("/users").json if user["first_name"] == "Nia"))

    shell.answers |= {
        "TOKEN": lambda: str(shell.last["access_token"]),
        "REFRESH": lambda: str(shell.last["refresh_token"]),
        "OTHER": other_login,
        "RESET": lambda: token_in(shell.last),
        "ADMIN": lambda: str(admin.token),
        "ID": account,
    }
    assert shell.run(ROOT / "docs/accounts.md", "API=", "curl", "flask") > 15
