"""No test imports a test, the tests and the benches do not import each other, and testing/ imports neither."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = sorted((ROOT / "tests").glob("*.py"))
BENCHES = sorted((ROOT / "bench").glob("*.py"))
SHARED = sorted((ROOT / "testing").glob("*.py"))
OF_TESTS = {"tests", "conftest", *(path.stem for path in TESTS)}
OF_BENCHES = {"bench", *(path.stem for path in BENCHES if path.stem not in ("__init__", "__main__", "server"))}
TEST_FILES = {name for name in OF_TESTS if name.startswith("test_")} | {"conftest"}


def imported(path: Path) -> set[str]:
    """The first name of every module that the file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_the_tests_import_no_test_file_and_no_bench(path: Path) -> None:
    assert imported(path) & (TEST_FILES | OF_BENCHES) == set()


@pytest.mark.parametrize("path", BENCHES, ids=lambda path: path.name)
def test_a_bench_imports_nothing_of_the_tests(path: Path) -> None:
    assert imported(path) & OF_TESTS == set()
    assert '"tests"' not in path.read_text(encoding="utf-8")  # nor adds their folder to the path


@pytest.mark.parametrize("path", SHARED, ids=lambda path: path.name)
def test_what_they_share_imports_neither(path: Path) -> None:
    assert imported(path) & (OF_TESTS | OF_BENCHES) == set()
