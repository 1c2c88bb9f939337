"""Prometheus itself, from Debian's package: it reads the server's metrics, and finds nothing to complain of."""

import subprocess
from pathlib import Path

import httpx2
import pytest
from live_servers import need
from live_servers import running as started
from ports import free_port
from running_server import WAIT_S, eventually, push, running

from onlooker.server.settings import Key, Limits, Source

pytestmark = pytest.mark.live
KEY = "a-key-for-prometheus-1234"
DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def busy(pocket, jpegs):
    """A server with a key whose metrics have all that they may have: sources, answers, refusals."""
    settings = {"named_keys": (Key("p", KEY),), "sources": (Source("front-door", "synthetic"),)}
    with running(pocket, Limits(new_tokens=20), **settings) as server, server.client(KEY) as client:
        path = f"/v1/streaming/sessions/{client.post('/v1/streaming/sessions', json={}).json()['session_id']}"
        push(client, path, jpegs[:3])
        assert client.post(f"{path}/ask", json={"question": "what is there now?"}).status_code == 200
        eventually(lambda: 'onlooker_source_up{source="front-door"} 1' in client.get("/metrics").text)
        yield server


def test_promtool_finds_nothing_wrong(busy, tmp_path):
    promtool = need("promtool", "prometheus")
    with busy.client(KEY) as client:
        text = client.get("/metrics").text
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert checked.returncode == 0 and not checked.stderr + checked.stdout, checked.stderr
    # The file names a secret that the container gets.
    (tmp_path / "key").write_text(KEY)
    config = (DEPLOY / "prometheus.yml").read_text().replace("/run/secrets/api_key", str(tmp_path / "key"))
    (tmp_path / "prometheus.yml").write_text(config)
    checked = subprocess.run([promtool, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_prometheus_reads_them(busy, tmp_path):
    program, port = need("prometheus", "prometheus"), free_port()
    (tmp_path / "key").write_text(KEY)
    config = (DEPLOY / "prometheus.yml").read_text().replace("/run/secrets/api_key", str(tmp_path / "key"))
    config = config.replace("onlooker:8000", f"127.0.0.1:{busy.port}").replace("5s", "1s")
    (tmp_path / "prometheus.yml").write_text(config)
    command = [program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    asks = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S)

    def value(query: str) -> dict[str, str]:
        found = asks.get("/api/v1/query", params={"query": query}).json()["data"]["result"]
        return {one["metric"].get("source", ""): one["value"][1] for one in found}

    with started(command, port), asks:
        eventually(lambda: asks.get("/-/ready").status_code == 200)
        eventually(lambda: value("up") == {"": "1"})
        eventually(lambda: value("onlooker_source_up") == {"front-door": "1"})
        assert float(value("histogram_quantile(0.5, onlooker_ask_latency_seconds_bucket)")[""]) > 0
