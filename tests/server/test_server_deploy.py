"""What is in deploy/ fits the server: every metric of the dashboard exists, every option of a command too."""

import json
import re
from pathlib import Path

import pytest

from onlooker.server.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_dashboard_asks_for_metrics_that_exist(shared):
    with shared.client() as client:
        text = client.get("/metrics").text
    known = set(re.findall(r"^# TYPE (\w+)", text, re.M))
    board = json.loads((DEPLOY / "grafana/dashboards/onlooker.json").read_text())
    asked = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\b((?:onlooker|process)_\w+)", target["expr"])
    }
    assert asked and asked <= known, asked - known
    assert Metrics("x").text()  # and each server has its own registry


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "onlooker.service"])
def test_commands_use_options_that_exist(name):
    import inspect

    from onlooker.cli.serve import serve

    known = {f"--{parameter.replace('_', '-')}" for parameter in inspect.signature(serve).parameters}
    text = (DEPLOY / name).read_text()
    lines = [line for line in text.splitlines() if "onlooker" in line or line.strip().startswith("- --")]
    commands = [
        line for line in lines if "ENTRYPOINT" in line or "ExecStart" in line or line.strip().startswith("- --")
    ]
    used = {option for line in commands for option in re.findall(r"--[a-z][a-z-]+", line)}
    assert used and used <= known, used - known


def test_images_run_without_root_and_check_their_health():
    text = (DEPLOY / "Dockerfile").read_text()
    for target in ("cpu", "cuda"):
        stage = text.split(f"AS {target}\n")[1].split("\nFROM ")[0]
        assert "USER onlooker" in stage and "HEALTHCHECK" in stage and "STOPSIGNAL SIGTERM" in stage
        assert "-c constraints.txt" in stage and "webrtc" in stage and "VOLUME /data" in stage
        assert "ONLOOKER_SERVER__PORT" in stage, "the check asks where the server listens"
    assert "HF_HOME=/data/" in text


def test_the_manifests_fit_the_server(shared, monkeypatch, tmp_path):
    import yaml

    from onlooker.server.config import read_config

    parts = list(yaml.safe_load_all((DEPLOY / "kubernetes/onlooker.yaml").read_text()))
    told, _, pods = parts
    assert [part["kind"] for part in parts] == ["ConfigMap", "Service", "StatefulSet"]
    monkeypatch.setenv("DOOR_URL", "rtsp://camera/stream")
    (tmp_path / "key").write_text("k" * 32)
    text = told["data"]["onlooker.toml"].replace("/run/secrets/onlooker", str(tmp_path))
    settings = read_config(None, text=text).server_settings()
    assert settings.named_keys[0].role == "admin" and settings.sources[0].name == "door"
    spec = pods["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(settings.state).startswith("/data/") and {"/data", "/tmp"} <= mounts
    assert container["ports"][0]["containerPort"] == settings.port
    assert spec["terminationGracePeriodSeconds"] > 2 * settings.limits.drain_s
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}
    with shared.client() as client:
        assert all(client.get(path).status_code == 200 for path in probes.values())
    assert spec["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
