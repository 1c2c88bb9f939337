"""The Ray Serve application with two workers on a Ray of this machine."""

import re

import httpx2
import pytest
from ports import free_port
from running_server import WAIT_S, eventually, push

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own code warns in many ways

ray = pytest.importorskip("ray", reason="needs the extra 'ray': pip install 'onlooker[ray]'")
pytest.importorskip("ray.serve", reason="needs the extra 'ray': pip install 'onlooker[ray]'", exc_type=ImportError)


SETTINGS = """
[model]
name = "pocket"
device = "cpu"
[server]
state = "{state}"
[retention]
memory_every_s = 1
[[sources]]
name = "door"
url = "synthetic"
questions = [{{ name = "what", text = "what is there now?", every_s = 2 }}]
[[sources]]
name = "yard"
url = "synthetic"
questions = [{{ name = "what", text = "what is there now?", every_s = 2 }}]
"""


@pytest.fixture(scope="module")
def ray_app(tmp_path_factory):
    from ray import serve

    from onlooker.server.ray_app import build

    port = free_port()
    folder = tmp_path_factory.mktemp("ray")
    file = folder / "onlooker.toml"
    file.write_text(SETTINGS.format(state=folder / "state"))
    ray.shutdown()  # another test may have left its own
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({"config": str(file), "workers": "2"}), name="onlooker")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def workers(client: httpx2.Client) -> list[str]:
    try:
        return client.get("/readyz").json().get("workers", [])
    except httpx2.TransportError:
        return []


def test_sessions_are_routed_to_their_actor_and_a_killed_one_is_replaced(ray_app, jpegs):
    with httpx2.Client(base_url=ray_app, timeout=WAIT_S) as client:
        eventually(lambda: len(workers(client)) == 2, 240)
        ids = [client.post("/v1/streaming/sessions", json={}).json()["session_id"] for _ in range(4)]
        # Where they are goes by measured load, and which runs these are by the tests before.
        assert {number.partition(".")[0] for number in ids} <= set(workers(client))
        for number in ids:
            path = f"/v1/streaming/sessions/{number}"
            push(client, path, jpegs[:2])
            assert client.post(f"{path}/ask", json={"question": "what is there now?"}).json()["time_s"] == 1.0
        body = {"question": "what is there now?", "stream": True}
        with client.stream("POST", f"/v1/streaming/sessions/{ids[0]}/ask", json=body) as reply:
            assert "event: answer" in list(reply.iter_lines())
        run = ids[-1].partition(".")[0]
        ray.kill(ray.get_actor(f"onlooker-{run}", namespace="onlooker"))
        for lost in (number for number in ids if number.startswith(f"{run}.")):
            eventually(lambda lost=lost: client.get(f"/v1/streaming/sessions/{lost}").status_code == 410)
        place, _, number = run.partition("r")
        eventually(lambda: f"{place}r{int(number) + 1}" in workers(client), 240)


def source(client: httpx2.Client, name: str) -> dict:
    """A source's session as its worker tells it; empty while nobody has it."""
    reply = client.get(f"/v1/streaming/sessions/{name}")
    return reply.json() if reply.status_code == 200 else {}


def said(client: httpx2.Client, name: str) -> set[int]:
    events = client.get("/v1/search", params={"stream": name, "kind": "answer", "limit": 500}).json()["events"]
    return {event["id"] for event in events}


def owner(client: httpx2.Client, name: str) -> str | None:
    """The number of the worker that watches a source, as the metrics tell."""
    found = re.search(rf'^onlooker_source_up{{worker="(\d+)",source="{name}"}}', client.get("/metrics").text, re.M)
    return found and found[1]


def test_the_sources_of_a_killed_worker_go_on_elsewhere_from_what_they_remembered(ray_app):
    names = ("door", "yard")
    with httpx2.Client(base_url=ray_app, timeout=WAIT_S) as client:
        eventually(lambda: len(workers(client)) == 2, 240)
        for name in names:
            eventually(lambda name=name: (source(client, name).get("kept_s") or 0) > 2.0, 120)
            eventually(lambda name=name: said(client, name), 120)
        assert {one["name"] for one in client.get("/v1/streaming/sources").json()["sources"]} == set(names)
        owners = {name: owner(client, name) for name in names}
        moved = [name for name in names if owners[name] == owners["yard"]]
        before, told = ({name: what(client, name) for name in names} for what in (source, said))
        victim = next(one for one in workers(client) if one.startswith(f"w{owners['yard']}r"))
        ray.kill(ray.get_actor(f"onlooker-{victim}", namespace="onlooker"))
        for name in moved:
            eventually(lambda name=name: owner(client, name) not in (None, owners["yard"]), 60)
            eventually(lambda name=name: (source(client, name).get("restored_s") or 0) >= before[name]["kept_s"], 60)
        for name in names:
            assert name in moved or source(client, name)["created"] == before[name]["created"], "others just go on"
            assert told[name] <= said(client, name), "what it had said is found"
            eventually(lambda name=name: said(client, name) - told[name], 120)
        after = source(client, "yard")
        eventually(lambda: len(workers(client)) == 2, 240)
        assert source(client, "yard")["created"] == after["created"], "it stays where it is"
        ask = {"question": "what is there now?"}
        assert client.post("/v1/streaming/sessions/yard/ask", json=ask).json()["text"]


def test_what_the_application_is_not_told_of_is_refused(tmp_path):
    from onlooker.core.errors import InputError
    from onlooker.server.ray_app import build

    (tmp_path / "onlooker.toml").write_text('[model]\nname = "pocket"\n')
    for given in ({"config": str(tmp_path / "onlooker.toml"), "memory": "full"}, {"model": "pocket", "colour": "red"}):
        with pytest.raises(InputError, match="does not know an argument"):
            build(given)
    with pytest.raises(InputError, match="cannot be read"):
        build({"config": str(tmp_path / "none.toml")})
