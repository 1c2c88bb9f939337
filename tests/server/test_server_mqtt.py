"""What the server tells an MQTT broker, as Home Assistant hears it; against Mosquitto where it says live."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from home_listener import MOSQUITTO, STATES, Home, broker
from running_server import eventually, running

from onlooker.core.errors import InputError
from onlooker.respond import Rule
from onlooker.server.config import Faulty, read_config
from onlooker.server.home_assistant import announced
from onlooker.server.mqtt import WAITING, Mqtt, MqttSettings, address_of
from onlooker.server.settings import Source, StandingQuestion

OFTEN = Rule.from_dict({"name": "often", "prompt": "is there anything?", "policy": "clock", "period_s": 1})
COUNT = StandingQuestion("count", "how many shapes are visible now?", every_s=1.0)
with_broker = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


def settings_for(port: int, **more) -> MqttSettings:
    return MqttSettings(f"mqtt://127.0.0.1:{port}", **({"picture_s": 1.0} | more))


# ------------------------------------------------------------------------------------------------ without a broker


@pytest.mark.parametrize(
    "url",
    ["http://a", "mqtt://", "mqtt:///x", "mqtt://a/topic", "mqtt://a:99999", "a:1883", "mqtt://a?x=1", "", "ws://a"],
)
def test_what_is_no_address_of_a_broker_is_refused(url):
    with pytest.raises(InputError):
        MqttSettings(url)


def test_addresses_hold_name_and_password_and_show_neither():
    assert address_of("mqtts://me:p%40ss@broker") == ("broker", 8883, True, "me", "p@ss")
    assert address_of("mqtt://[::1]:7") == ("::1", 7, False, None, None)
    assert "p%40ss" not in repr(MqttSettings("mqtt://me:p%40ss@broker"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prefix", "a/#"),
        ("prefix", ""),
        ("prefix", "/a"),
        ("discovery", "+"),
        ("node", "a b"),
        ("alert_s", 0.0),
        ("picture_s", -1.0),
        ("cert_file", Path("x")),
    ],
)
def test_what_no_topic_can_hold_is_refused(name, value):
    with pytest.raises(InputError):
        MqttSettings("mqtt://a", **{name: value})


def test_the_file_names_the_broker_and_keeps_its_password_elsewhere(monkeypatch):
    monkeypatch.setenv("BROKER", "mqtt://me:secret@broker")
    text = '[mqtt]\nurl_env = "BROKER"\nprefix = "home/eyes"\ndiscovery = ""\n'
    settings = read_config(None, text=text).server_settings().mqtt
    assert settings is not None and settings.discovery is None
    assert settings.base == "home/eyes/server" and settings.client_id == "home_eyes_server"
    with pytest.raises(Faulty, match="mqtt: a certificate for MQTT cannot be read"):
        read_config(None, text='[mqtt]\nurl = "mqtts://a"\nca_file = "none.pem"\n')
    with pytest.raises(Faulty, match=r"mqtt: give one of url, url_env, url_file"):
        read_config(None, text="[mqtt]\n")


def test_every_thing_of_a_source_is_announced_once():
    settings = MqttSettings("mqtt://a")
    found = announced(settings, [Source("door", "x", rules=(OFTEN,), questions=(COUNT,)), Source("yard", "x")])
    assert len(found) == 8 and len({json.loads(one)["unique_id"] for one in found.values()}) == 8
    assert "homeassistant/binary_sensor/onlooker_server/door_rule_often/config" in found
    assert announced(MqttSettings("mqtt://a", discovery=None), [Source("door", "x")]) == {}


def test_what_waits_for_a_broker_that_is_away_is_bounded_and_counted():
    client = Mqtt(settings_for(9))
    try:
        sent = [client.event("a", str(number)) for number in range(WAITING + 10)]
        assert sent == [True] * WAITING + [False] * 10 and client.counts.dropped == 10
        eventually(lambda: client.counts.failures)
    finally:
        client.close()


# --------------------------------------------------------------------------------------------------- with Mosquitto


@pytest.mark.live
@with_broker
def test_home_assistant_sees_every_source(pocket, tmp_path):
    sources = (
        Source("door", "synthetic:1", rules=(OFTEN,), questions=(COUNT,)),
        Source("yard", "tcp://127.0.0.1:9"),  # which is not there
    )
    with broker(tmp_path) as there, Home(there.port) as home:
        home.publish("homeassistant/sensor/onlooker_server/attic_answer/config", '{"unique_id": "old"}', retain=True)
        with running(pocket, sources=sources, source_fps=4.0, mqtt=settings_for(there.port)) as server:
            eventually(lambda: home.things().get("door often", {}).get("state") == "ON")
            eventually(lambda: home.things()["door count"]["state"] and home.things()["door picture"]["state"])
            eventually(lambda: home.things()["door picture problem"]["state"] == "OFF")
            seen = home.things()
            assert set(seen) == {
                *(f"door {name}" for name in ("often", "picture problem", "answer", "count", "picture")),
                *(f"yard {name}" for name in ("picture problem", "answer", "picture")),
            }, "and what an earlier run announced is gone"
            assert home.wrong == []
            assert all(seen[name]["available"] == name.startswith("door") for name in seen)
            assert seen["door picture"]["state"].startswith(b"\xff\xd8")
            assert seen["door often"]["facts"]["rule"] == "often" and seen["door often"]["facts"]["stream"] == "door"
            assert seen["door count"]["facts"]["question"] == COUNT.text
            assert seen["door count"]["facts"]["text"] == seen["door count"]["state"]
            for one in seen.values():
                assert one["state"] is None or one["kind"] not in STATES or one["state"] in STATES[one["kind"]]
            with server.client() as client:
                client.delete("/v1/streaming/sessions/door/rules/often")
                client.put("/v1/admin/sources/door", json={"questions": []})
                eventually(lambda: {"door often", "door count"}.isdisjoint(home.things()))
                eventually(lambda: not home.newest["onlooker/server/door/questions/count"])
                client.delete("/v1/admin/sources/yard")
                eventually(lambda: {one.split()[0] for one in home.things()} == {"door"})
                text = client.get("/metrics").text
                assert "onlooker_mqtt_connected 1.0" in text
                assert 'onlooker_mqtt_messages_total{result="dropped"} 0.0' in text
        eventually(lambda: not home.things()["door answer"]["available"])
        assert home.newest["onlooker/server/status"] == b"offline"


@pytest.mark.live
@with_broker
def test_a_broker_that_comes_back_hears_everything_again(tmp_path, monkeypatch):
    monkeypatch.setattr("onlooker.server.mqtt.SHORTEST_PAUSE_S", 4)  # the listener is back first: events are not kept
    with broker(tmp_path) as there:
        client = Mqtt(settings_for(there.port))
        try:
            with Home(there.port) as home:
                client.state("a/state", "1")
                eventually(lambda: home.newest.get("a/state") == b"1")
                there.stop()
                eventually(lambda: not client.is_connected)
                client.state("a/state", "2")
                client.state("a/gone", "3")
                client.state("a/gone", None)
                for number in range(WAITING + 5):
                    client.event("a/event", str(number))
                assert client.counts.dropped == 5
                there.start()
                last = str(WAITING - 1).encode()
                eventually(lambda: home.newest.get("a/event") == last and home.newest.get("a/state") == b"2")
                told = [int(payload) for topic, payload in home.came if topic == "a/event"]
                assert set(told) == set(range(WAITING)), "what found room is not lost"
                assert not home.newest.get("a/gone")
                eventually(
                    lambda: client.counts.connections == 2 and home.newest["onlooker/server/status"] == b"online"
                )
        finally:
            client.close()


@pytest.mark.live
@with_broker
def test_a_killed_server_is_told_by_the_broker(tmp_path):
    file = tmp_path / "onlooker.toml"
    with broker(tmp_path) as there, Home(there.port) as home:
        file.write_text(
            '[model]\nname = "pocket"\ndevice = "cpu"\n[server]\nport = 0\n[[sources]]\nname = "door"\n'
            'url = "synthetic:1"\n[mqtt]\nurl_env = "BROKER"\n'
        )
        words = [sys.executable, "-m", "onlooker", "serve", "--config", str(file)]
        environment = os.environ | {"BROKER": f"mqtt://127.0.0.1:{there.port}"}
        with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as process:
            eventually(lambda: home.things().get("door answer", {}).get("available"), 120.0)
            process.send_signal(signal.SIGKILL)
        eventually(lambda: home.newest["onlooker/server/status"] == b"offline")
        assert not home.things()["door answer"]["available"]


# paho leaves the socket of a handshake that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.live
@with_broker
def test_a_broker_behind_tls_with_a_password(tmp_path):
    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "me", "p@ss"], check=True)
    lines = ["allow_anonymous false", f"password_file {passwords}", f"certfile {tmp_path / 'cert.pem'}"]
    with broker_as_root(tmp_path, *lines, f"keyfile {tmp_path / 'key.pem'}") as there:
        good = MqttSettings(f"mqtts://me:p%40ss@127.0.0.1:{there.port}", ca_file=tmp_path / "ca.pem")
        client = Mqtt(good)
        eventually(lambda: client.is_connected)
        client.close()
        for bad, why in (
            (MqttSettings(f"mqtts://me:wrong@127.0.0.1:{there.port}", ca_file=tmp_path / "ca.pem"), "refused"),
            (MqttSettings(f"mqtts://me:p%40ss@127.0.0.1:{there.port}"), "cannot be reached"),  # a stranger's signature
        ):
            client = Mqtt(bad)
            eventually(lambda client=client: client.counts.failures)
            assert why in str(client.counts.last_error) and not client.is_connected
            client.close()


def broker_as_root(folder: Path, *lines: str):
    """Mosquitto gives up the rights of root unless told otherwise, and could not read the files of this test."""
    user = ["user root"] if os.getuid() == 0 else []
    return broker(folder, *user, *lines)
