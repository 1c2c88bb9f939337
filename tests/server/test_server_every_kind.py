"""A server with a method of every kind in `core/kinds.py` that is not the default, from its configuration."""

from pathlib import Path

from running_server import PATIENT, push, running

from onlooker.core import kinds, registry
from onlooker.engine import Engine
from onlooker.models import load
from onlooker.server.config import read_config
from onlooker.world import make_episode

METHODS = {
    "gate": "every_nth:n=2",
    "encoder": "stc_published:interval=2",
    "compressor": "uniform:keep=3",
    "memory": "rekv:topk=2,window_tokens=16",
    "refiner": "fastv:ratio=0.5",
    "think": "vst:every_s=2,longest=2",
    "response": "clock:period_s=2",
    "schedule": "round_robin",
    "codec": "int8",
}


def test_all_kinds_at_once_in_a_server(tiny_folder: Path) -> None:
    assert METHODS.keys() == kinds.KINDS.keys()
    model = {kind: text for kind, text in METHODS.items() if kind != "codec"} | {"kv": f"host={METHODS['codec']}"}
    frames = list(make_episode(3, "test", duration_s=6.0).frames(fps=1.0))
    config = read_config(None, {"model": {"name": str(tiny_folder), "device": "cpu", **model}})
    given, settings = config.engine_settings(), config.server_settings()
    engine = Engine(load(tiny_folder, device="cpu"), **given)
    assert all(engine.methods[kind] == registry.make(kind, METHODS[kind]) for kind in engine.methods)
    more = {"response": settings.response, "schedule": settings.schedule, "slo": PATIENT}
    with running(lambda: engine, **more) as server, server.client() as client:
        place = client.post("/v1/streaming/sessions", json={}).json()["session_id"]
        path = f"/v1/streaming/sessions/{place}"
        told = client.put(f"{path}/rules/what", json={"prompt": "what is there now ?", "then": "answer"}).json()
        assert told["policy"] == "clock" and told["period_s"] == 2
        push(client, path, [frame.jpeg() for frame in frames])
        answer = client.post(f"{path}/ask", json={"question": "what is there now ?", "max_tokens": 2})
        assert answer.status_code == 200, answer.text
        stats = client.get(f"{path}/stats").json()
        assert stats["frames_skipped"] > 0, "the gate is in place"
        client.delete(path)
