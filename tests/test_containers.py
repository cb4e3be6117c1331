"""The files for containers: compose.yaml sets settings that exist, from an example that has them, and mounts files."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from config import Settings

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service.get("image") == "hosi-server"}
EXAMPLE = dotenv_values(ROOT / "deploy" / "compose" / "secrets.env.example")


def test_the_nodes_are_given_settings_that_exist() -> None:
    assert OURS.keys() == {"node1", "node2", "migrate", "bucket"}
    for service in OURS.values():
        assert service["environment"].keys() <= Settings.model_fields.keys()


def test_all_that_compose_asks_for_is_in_the_example() -> None:
    asked = set(re.findall(r"\$\{(\w+)(?::\?)?\}", TEXT))
    assert asked == EXAMPLE.keys()


def test_the_nodes_start_with_the_example_once_its_secrets_are_set() -> None:
    """The settings of a node are checked as the server does, secrets of the example filled in."""
    filled = {name: value or f"{name.lower()}{'0' * 32}" for name, value in EXAMPLE.items()}

    def with_values(text: str) -> str:
        return re.sub(r"\$\{(\w+)(?::[?-])?\}", lambda match: filled.get(match[1]) or "", text)

    for service in OURS.values():
        given = {name: with_values(value) for name, value in service["environment"].items()}
        settings = Settings(**{name: value for name, value in given.items() if value})
        assert settings.production
        assert settings.DATABASE_URL.startswith("postgresql+psycopg2://hosi:database_password0")


@pytest.mark.parametrize("name", SERVICES)
def test_every_file_that_is_mounted_exists(name: str) -> None:
    mounted = [str(volume).split(":")[0] for volume in SERVICES[name].get("volumes", [])]
    for source in mounted:
        assert (ROOT / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_a_node_cannot_write_to_its_image_nor_gain_rights(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "privileged" not in service


def test_the_image_has_every_module_and_no_secret() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == {"requirements.txt", ".flaskenv", "*.py", "clinic", "server", "migrations", "static"}
    recipe = (ROOT / "Dockerfile").read_text()
    assert all(re.search(rf"^COPY .*{re.escape(name)}", recipe, re.MULTILINE) for name in kept)
