"""The figures for Prometheus: who may read them, and what counts."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from client import Client, assert_refused, run_cli
from factories import PASSWORD, make_patient
from flask import Flask

# After the commands were run, and under granian
NOT_HERE = {"hosi_last_sweep_age_seconds", "hosi_last_verify_age_seconds", "hosi_gate_waiting"}
TOKEN = "a-token-for-prometheus"


def figures(app: Flask) -> dict[str, float]:
    """Every figure, by its name and labels. Those of earlier tests in this process are counted, too."""
    answer = Client(app).get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def requests(method: str, route: str, status: int) -> str:
    return f'hosi_request_seconds_count{{method="{method}",route="{route}",status="{status}"}}'


# --- Who may read them ---


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1"])
def test_this_machine_reads_them(app: Flask, address: str) -> None:
    assert app.test_client().get("/metrics", environ_base={"REMOTE_ADDR": address}).status_code == 200


@pytest.mark.parametrize("address", ["10.0.0.7", "::2", "", "localhost"])
def test_another_machine_does_not(app: Flask, address: str) -> None:
    assert app.test_client().get("/metrics", environ_base={"REMOTE_ADDR": address}).status_code == 403


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Forwarded-Proto", "Via"])
def test_what_a_proxy_passes_on_does_not_come_from_this_machine(app: Flask, header: str) -> None:
    assert_refused(Client(app).get("/metrics", headers={header: "127.0.0.1"}), 403)


@pytest.fixture
def guarded(own_app: Flask) -> Flask:
    own_app.config["METRICS_TOKEN"] = TOKEN
    return own_app


def test_who_has_the_token_reads_them_from_anywhere(guarded: Flask) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Forwarded-For": "10.0.0.7"}
    assert guarded.test_client().get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize("given", ["", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ", "Bearer é"])
def test_a_wrong_token_is_refused_also_on_this_machine(guarded: Flask, given: str) -> None:
    refused = guarded.test_client().get("/metrics", headers={"Authorization": given} if given else {})
    assert (refused.status_code, refused.json["code"]) == (401, "wrong_credentials")


# --- What counts ---


def test_requests_count_by_route_and_never_by_path(app: Flask, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    name = requests("GET", "/patient/<id:patient_id>", 200)
    before = figures(app)
    for _ in range(3):
        doctor.get(f"/patient/{patient}?q=secret")
    doctor.get("/patient/999")
    doctor.get("/nothing/secret")
    after = figures(app)
    assert after[name] - before.get(name, 0) == 3
    assert after[requests("GET", "/patient/<id:patient_id>", 404)] >= 1
    assert after[requests("GET", "none", 404)] >= 1
    assert "secret" not in "".join(after)


def test_a_strange_method_adds_no_figure_of_its_own(app: Flask) -> None:
    for number in range(3):
        app.test_client().open("/", method=f"STRANGE{number}")
    assert not [name for name in figures(app) if "STRANGE" in name]


def test_sign_ins_and_locks_count(own_app: Flask, ada: dict[str, Any]) -> None:
    before = figures(own_app)
    client = Client(own_app)
    assert client.post("/login", {**ada, "password": PASSWORD}).status_code == 200
    for _ in range(6):
        client.post("/login", {**ada, "password": "wrong password"})
    after = figures(own_app)

    def more(name: str) -> float:
        return after[name] - before[name]

    assert more('hosi_sign_ins_total{outcome="good"}') == 1
    assert more('hosi_sign_ins_total{outcome="wrong"}') == 5
    assert more('hosi_sign_ins_total{outcome="locked"}') == 1
    assert more('hosi_sign_in_locks_total{of="address"}') == 1


@pytest.fixture
def ada(own_app: Flask) -> dict[str, Any]:
    account = {"email": "ada@clinic.test", "password": PASSWORD}
    signed_up = Client(own_app).post(
        "/signup", {"first_name": "Ada", "last_name": "Otieno", "role": "admin", **account}
    )
    assert signed_up.status_code == 201
    return account


def test_the_age_of_a_sweep_and_of_a_verification_is_shown(own_app: Flask) -> None:
    done = Path(own_app.config["INSTANCE_PATH"]) / "done"
    for chore in ("sweep", "verify"):
        (done / chore).unlink(missing_ok=True)
    assert not [name for name in figures(own_app) if re.match("hosi_last_.*_age_seconds", name)]
    assert run_cli(own_app, "purge")[0] == 0
    assert run_cli(own_app, "audit", "verify")[0] == 0
    shown = figures(own_app)
    assert 0 <= shown["hosi_last_sweep_age_seconds"] < 60
    assert 0 <= shown["hosi_last_verify_age_seconds"] < 60


def test_the_pool_is_shown(app: Flask) -> None:
    assert figures(app)["hosi_pool_size"] >= 0


def test_the_alerts_and_the_board_ask_for_figures_that_exist(app: Flask) -> None:
    deploy = Path(__file__).parent.parent / "deploy"
    shown = set(re.findall(r"^# TYPE (\S+)", Client(app).get("/metrics").text, re.MULTILINE))
    for file in ("alerts.yml", "grafana-board.json"):
        asked = set(re.findall(r"hosi_[a-z_]+", (deploy / file).read_text()))
        asked = {re.sub("_(count|bucket|sum)$", "", name) for name in asked}
        assert asked - shown - NOT_HERE == set(), file


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (apt-get install prometheus)")
def test_each_alert_fires() -> None:
    rules = Path(__file__).parent.parent / "deploy" / "alerts_test.yml"
    tried = subprocess.run(["promtool", "test", "rules", str(rules)], capture_output=True, text=True, check=False)
    assert tried.returncode == 0, tried.stdout + tried.stderr
