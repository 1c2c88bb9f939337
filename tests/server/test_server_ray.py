"""The Ray Serve application with two workers on a Ray of this machine."""

import socket

import httpx2
import pytest
from running_server import WAIT_S, eventually, push

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own code warns in many ways

ray = pytest.importorskip("ray", reason="needs the extra 'ray': pip install 'onlooker[ray]'")
pytest.importorskip("ray.serve", reason="needs the extra 'ray': pip install 'onlooker[ray]'", exc_type=ImportError)


@pytest.fixture(scope="module")
def ray_app():
    from ray import serve

    from onlooker.server.ray_app import build

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.shutdown()  # another test may have left its own
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({"model": "pocket", "workers": "2", "device": "cpu"}), name="onlooker")
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
        assert {number.partition(".")[0] for number in ids} == {"w0r1", "w1r1"}
        for number in ids:
            path = f"/v1/streaming/sessions/{number}"
            push(client, path, jpegs[:2])
            assert client.post(f"{path}/ask", json={"question": "what is there now?"}).json()["time_s"] == 1.0
        body = {"question": "what is there now?", "stream": True}
        with client.stream("POST", f"/v1/streaming/sessions/{ids[0]}/ask", json=body) as reply:
            assert "event: answer" in list(reply.iter_lines())
        lost = next(number for number in ids if number.startswith("w1r1"))
        ray.kill(ray.get_actor("onlooker-w1r1", namespace="onlooker"))
        eventually(lambda: client.get(f"/v1/streaming/sessions/{lost}").status_code == 410)
        eventually(lambda: "w1r2" in workers(client), 240)
