"""One configuration file: read, checked, applied while the server runs, changed over HTTP and written back."""

import asyncio
import inspect
import json
import re
import stat
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from running_server import eventually, running

from onlooker.cli.serve import KEYS, serve
from onlooker.core import registry
from onlooker.respond import Rule
from onlooker.server.config import Config, Faulty, read_config
from onlooker.server.config_file import ConfigFile
from onlooker.server.dealing import Dealing
from onlooker.server.refusals import Refusal
from onlooker.server.router import Router
from onlooker.server.rules import told as rule_told
from onlooker.server.workers import Workers

READER, ASKER, ADMIN = "r" * 24, "a" * 24, "m" * 24
SECRET = "hunter2-is-a-password"
HEART = {"name": "heart", "prompt": "say yes when you see a blue heart."}
FILE = """\
# my cameras
[model]
name = "pocket"

[server]
fps = 5.0   # looked at

[[sources]]
name = "door"            # the front door
url = "synthetic:1"
rules = [{ name = "heart", prompt = "say yes when you see a blue heart." }]

[[sources]]
name = "yard"
url = "synthetic:2"
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "onlooker.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def served(pocket, file):
    """A server with that file, and a client."""
    with running_with(pocket, file) as server, server.client() as client:
        eventually(lambda: {"door", "yard"} <= server.service.streams.keys())
        eventually(lambda: all(one.newest is not None for one in server.service.streams.values()))
        yield server, client, file


def running_with(pocket, file):
    config = ConfigFile(file, {})
    settings = config.config.server_settings()
    return running(
        pocket, settings.limits, config=config, sources=settings.sources, source_fps=settings.source_fps,
        named_keys=settings.named_keys, webhook=settings.webhook,
    )  # fmt: skip


def faults(text: str) -> list[str]:
    with pytest.raises(Faulty) as error:
        read_config(None, text=text)
    return error.value.faults


# -------------------------------------------------------------------------------------------------------- the file


def test_every_option_has_its_key_and_the_same_default():
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(serve).parameters.items()
        if name not in ("context", "config", "worker")
    }
    assert options.keys() == KEYS.keys()
    said = Config().model_dump()
    for name, default in options.items():
        section, _, field = KEYS[name].partition(".")
        if section in ("webhook", "sources"):
            assert default is None and not said[section]
        else:
            assert (default or None) == (said[section][field] or None), name


def test_an_empty_file_is_the_usual_server():
    assert read_config(None, text="").server_settings().sources == ()


def test_the_environment_comes_before_the_file_and_the_command_line_before_both(monkeypatch):
    monkeypatch.setenv("ONLOOKER_SERVER__PORT", "9001")
    text = '[server]\nport = 1\nfps = 3\n[[sources]]\nname = "a"\nurl = "synthetic"\n'
    assert read_config(None, text=text).server.port == 9001
    more = {"server": {"port": 5}, "sources": [{"name": "b", "url": "synthetic"}]}
    config = read_config(None, more, text)
    assert (config.server.port, config.server.fps) == (5, 3.0)
    assert [source.name for source in config.sources] == ["a", "b"]


def test_the_file_on_the_page_is_right_and_names_every_key(monkeypatch, tmp_path):
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (tmp_path / "wall").write_text("w" * 24)
    monkeypatch.setenv("HOOK_SECRET", "whsec_" + "c2VjcmV0" * 4)
    monkeypatch.setenv("DOOR_URL", "rtsp://door/1")
    monkeypatch.setenv("NTFY_URL", "https://ntfy.example/topic")
    monkeypatch.setenv("BROKER_URL", "mqtts://me:secret@broker")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:secret@database/eyes")
    config = read_config(None, text=text.replace("/run/secrets/wall", str(tmp_path / "wall")))
    (door,) = config.server_settings().sources
    assert (door.rules[0].name, door.questions[0].every_s, door.fps, door.lag_s) == ("person", 60.0, 0.5, 1.0)
    for section in ("model", "server", "limits", "slo", "retention", "mqtt", "search"):
        for key in type(getattr(config, section)).model_fields:
            assert re.search(rf"\b{key}\b", text), f"{section}.{key}"


def test_secrets_come_from_the_environment_or_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("YARD", f"rtsp://me:{SECRET}@yard/1")
    (tmp_path / "door").write_text(f"rtsp://me:{SECRET}@door/1\n")
    text = f"""
        [[sources]]
        name = "yard"
        url_env = "YARD"
        fps = 0.2
        lag_s = 3
        questions = [{{ name = "count", text = "how many?", every_s = 30 }}]
        [[sources]]
        name = "door"
        url_file = "{tmp_path / "door"}"
        [[keys]]
        name = "anna"
        key = "{"k" * 20}"
        role = "admin"
        sessions = 3
        questions_per_minute = 6
    """
    settings = read_config(None, text=text).server_settings()
    yard, door = settings.sources
    assert yard.url == f"rtsp://me:{SECRET}@yard/1" and door.url == f"rtsp://me:{SECRET}@door/1"
    assert (yard.fps, yard.lag_s, yard.questions[0].every_s) == (0.2, 3.0, 30.0)
    (anna,) = settings.all_keys
    assert (anna.name, anna.role, anna.sessions, anna.questions_per_minute) == ("anna", "admin", 3, 6.0)
    assert SECRET not in repr(settings) and "k" * 20 not in repr(settings)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("[server]\nport = -1\nprot = 2", ["server.port: Input should be", "server.prot: there is no such key"]),
        ('[[sources]]\nname = "a"\nurl = "synthetic"\nfps = 0', ["sources.a.fps: Input should be greater than 0"]),
        ('[[sources]]\nname = "a b"\nurl = "x"', ["sources.a b.name: String should match"]),
        ('[[sources]]\nname = "a"', ["sources.a: give one of url, url_env, url_file; given: none"]),
        ('[[sources]]\nname = "a"\nurl = "x"\nurl_env = "Y"', ["sources.a: give one of"]),
        ('[[sources]]\nname = "a"\nurl_env = "NOT_SET"', ["the environment variable NOT_SET is not set"]),
        ('[[sources]]\nname = "a"\nurl_file = "/nowhere"', ["sources.a: url_file: /nowhere cannot be read"]),
        ('[[sources]]\nname = "a"\nurl = "x"\nrules = [{ name = "r" }]', ["sources.a: a rule needs a name"]),
        ('[[sources]]\nname = "a"\nurl = "x"\n[[sources]]\nname = "a"\nurl = "x"', ["sources.a: two sources"]),
        ('[[keys]]\nname = "k"\nkey_env = "NOT_SET"\nrole = "asker"', ["keys.k: key_env"]),
        ('[[keys]]\nname = "k"\nkey = "' + "x" * 20 + '"\nrole = "god"', ["keys.k.role: Input should be"]),
        ('[model]\nmemory = "none_such"', ["model: there is no memory of that name"]),
        ('[limits]\nmax_memory = "much"', ["limits.max_memory: a budget is a number of bytes"]),
        ('[webhook]\nurl = "ftp://x"\nsecret = "' + "s" * 20 + '"', ["webhook: "]),
        ("[server\n", ["this is not TOML"]),
        ("hello = 1", ["hello: there is no such key"]),
    ],
)  # fmt: skip
def test_every_fault_is_one_line_that_says_where(text, lines):
    found = faults(text)
    assert len(found) == len(lines)
    assert all(line in one and "\n" not in one for line, one in zip(lines, found, strict=True)), found


def test_a_fault_shows_no_secret():
    url = f"rtsp://me:{SECRET}@cam/1"
    told = " ".join(
        faults(f'[[sources]]\nname = "a"\nurl = ["{url}"]\n[[keys]]\nname = "x"\nkey = 5\n[[keys]]\nkey = "{SECRET}"')
    )
    assert SECRET not in told


# ------------------------------------------------------------------------------------------------ a running server


def test_a_reload_leaves_untouched_streams_alone(served):
    server, client, file = served
    door, yard = (server.service.streams[name] for name in ("door", "yard"))
    (rule,) = client.get("/v1/streaming/sessions/door/rules").json()["rules"]
    assert rule["prompt"] == HEART["prompt"]
    changed = FILE.replace("blue heart", "red star").replace(
        'name = "yard"\nurl = "synthetic:2"', 'name = "roof"\nurl = "synthetic:3"'
    )
    file.write_text(
        changed + 'questions = [{ name = "count", text = "how many shapes are visible now?", every_s = 1 }]\n'
    )
    told = client.post("/v1/admin/reload").json()
    assert sorted(told["applied"]) == ["sources.door changed", "sources.roof added", "sources.yard removed"]
    assert told["needs_restart"] == []
    assert server.service.streams["door"] is door and door.state == "live" and yard.state == "closed"
    assert [one["prompt"] for one in client.get("/v1/streaming/sessions/door/rules").json()["rules"]] == [
        "say yes when you see a red star."
    ]
    assert client.get("/v1/streaming/sessions/yard").status_code == 410
    eventually(lambda: client.get("/v1/streaming/sessions/roof").status_code == 200)
    assert client.post("/v1/admin/reload").json()["applied"] == []
    with client.stream(
        "GET", "/v1/streaming/sessions/roof/events?types=answer", headers={"last-event-id": "0"}
    ) as reply:
        line = next(line for line in reply.iter_lines() if line.startswith("data: "))
    assert json.loads(line[6:])["standing"] == "count"


def test_what_counts_from_the_next_start_is_named(served):
    _, client, file = served
    file.write_text(FILE.replace('"pocket"', '"pocket-aware"').replace("fps = 5.0", "fps = 4.0\nport = 8001"))
    told = client.post("/v1/admin/reload").json()
    assert sorted(told["needs_restart"]) == ["model.name", "server.port"]
    assert sorted(told["applied"]) == ["source_fps", "sources.door reopened", "sources.yard reopened"]


def test_a_wrong_file_changes_nothing(served):
    server, client, file = served
    before = dict(server.service.streams)
    file.write_text(FILE.replace("synthetic:2", "").replace("5.0", "0"))
    refused = client.post("/v1/admin/reload")
    assert refused.status_code == 422 and refused.json()["error"]["code"] == "invalid_config"
    assert "server.fps" in refused.json()["error"]["message"]
    assert server.service.streams == before


def test_a_hangup_signal_reloads(served):
    server, client, file = served
    file.write_text(FILE + '[[sources]]\nname = "roof"\nurl = "synthetic:3"\n')
    server.server.handle_reload(1, None)
    eventually(lambda: client.get("/v1/streaming/sessions/roof").status_code == 200)


def test_sources_are_changed_over_http_and_written_back(pocket, served):
    server, client, file = served
    door = server.service.streams["door"]
    put = client.put(
        "/v1/admin/sources/roof", json={"url": f"rtsp://me:{SECRET}@127.0.0.1:9/x", "fps": 2, "rules": [HEART]}
    )
    assert put.status_code == 200 and (put.json()["done"], put.json()["written"]) == ("added", True)
    assert SECRET not in put.text and SECRET not in client.get("/v1/admin/sources").text
    assert client.put("/v1/admin/sources/door", json={"rules": []}).json()["done"] == "changed"
    assert client.put("/v1/streaming/sessions/yard/rules/heart", json={"prompt": HEART["prompt"]}).status_code == 200
    assert server.service.streams["door"] is door
    written = tomllib.loads(file.read_text())
    names = {one["name"]: one for one in written["sources"]}
    assert names["roof"]["fps"] == 2.0 and SECRET in names["roof"]["url"]
    assert "rules" not in names["door"] and names["yard"]["rules"][0]["name"] == "heart"
    assert "# my cameras" in file.read_text() and "# the front door" in file.read_text()
    assert client.delete("/v1/admin/sources/roof").json()["deleted"]
    assert client.delete("/v1/admin/sources/roof").status_code == 404
    assert client.delete("/v1/streaming/sessions/yard/rules/heart").status_code == 200
    written = tomllib.loads(file.read_text())
    assert [one["name"] for one in written["sources"]] == ["door", "yard"] and "rules" not in written["sources"][1]
    assert client.post("/v1/admin/reload").json() == {"applied": [], "needs_restart": []}, (
        "what runs is what is written"
    )


@pytest.mark.parametrize(
    "body",
    [{}, {"url": "file:///etc/passwd"}, {"url": "/etc/passwd"}, {"url": "synthetic", "rules": [{"name": "x"}]},
     {"url": "synthetic", "fps": 0}, {"url": "synthetic", "url_env": "HOME"},
     {"url": "synthetic", "questions": [{"name": "x"}]}],
)  # fmt: skip
def test_a_source_that_makes_no_sense_is_refused(served, body):
    _, client, file = served
    assert client.put("/v1/admin/sources/new", json=body).status_code == 422
    assert client.put("/v1/admin/sources/a.b", json={"url": "synthetic"}).status_code == 422
    assert file.read_text() == FILE


def test_without_a_file_sources_change_and_nothing_is_written(pocket):
    with running(pocket) as server, server.client() as client:
        put = client.put("/v1/admin/sources/roof", json={"url": "synthetic"})
        assert put.json()["written"] is False
        eventually(lambda: client.get("/v1/streaming/sessions/roof").status_code == 200)
        refused = client.post("/v1/admin/reload")
        assert refused.status_code == 409 and refused.json()["error"]["code"] == "no_config"


# ----------------------------------------------------------------------------------------------------------- roles


@pytest.fixture
def keyed(pocket, tmp_path):
    keys = (("reader", READER, ""), ("asker", ASKER, "sessions = 1\nquestions_per_minute = 4"), ("admin", ADMIN, ""))
    text = '[[sources]]\nname = "demo"\nurl = "synthetic"\n'
    for role, key, more in keys:
        text += f'[[keys]]\nname = "{role}"\nrole = "{role}"\nkey = "{key}"\n{more}\n'
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with running_with(pocket, path) as server:
        eventually(lambda: "demo" in server.service.streams and server.service.streams["demo"].newest is not None)
        yield server, path, text


def test_roles_may_what_they_may(keyed):
    server, _, _ = keyed
    question = {"question": "what is there now?"}
    rule = {"prompt": HEART["prompt"]}
    ask, rules = "/v1/streaming/sessions/demo/ask", "/v1/streaming/sessions/demo/rules"
    expected = {
        READER: {"GET /v1/streaming/sessions": 200, f"POST {ask}": 403, f"PUT {rules}/a": 403,
                 "POST /v1/streaming/sessions": 403,
                 "GET /v1/admin/sources": 403, "GET /v1/streaming/sessions/demo/preview.jpg": 200},
        ASKER: {"GET /v1/streaming/sessions": 200, f"POST {ask}": 200, f"PUT {rules}/a": 403,
                "POST /v1/streaming/sessions": 201,
                "GET /v1/admin/sources": 403, "POST /v1/admin/reload": 403},
        ADMIN: {f"POST {ask}": 200, f"PUT {rules}/a": 200, "GET /v1/admin/sources": 200, "POST /v1/admin/reload": 200},
    }  # fmt: skip
    for key, calls in expected.items():
        with server.client(key) as client:
            for call, status in calls.items():
                method, _, path = call.partition(" ")
                body = (
                    question if path == ask else rule if method == "PUT" else {} if path.endswith("sessions") else None
                )
                assert client.request(method, path, json=body).status_code == status, (call, key)


def test_a_reader_has_no_socket(keyed):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    server, _, _ = keyed
    with pytest.raises(InvalidStatus) as refused:
        connect(
            f"ws://127.0.0.1:{server.port}/v1/streaming/sessions/demo/socket",
            subprotocols=["onlooker", f"onlooker.key.{READER}"],
        )
    assert refused.value.response.status_code == 403


def test_limits_of_a_key(keyed):
    server, _, _ = keyed
    with server.client(ASKER) as client:
        assert client.post("/v1/streaming/sessions", json={}).status_code == 201
        full = client.post("/v1/streaming/sessions", json={})
        assert full.status_code == 429 and full.json()["error"]["code"] == "too_many_sessions"
        question = {"question": "what is there now?"}
        assert client.post("/v1/streaming/sessions/demo/ask", json=question).status_code == 200
        often = client.post("/v1/streaming/sessions/demo/ask", json=question)
        assert often.status_code == 429 and int(often.headers["retry-after"]) > 0


def test_keys_change_while_the_server_runs(keyed):
    server, path, text = keyed
    with server.client(ASKER) as asker, server.client(ADMIN) as admin, server.client("n" * 24) as new:
        own = asker.post("/v1/streaming/sessions", json={}).json()["session_id"]
        assert new.get("/v1/models").status_code == 401
        path.write_text(text.replace(ASKER, "n" * 24))
        assert admin.post("/v1/admin/reload").json()["applied"] == ["named_keys"]
        assert asker.get("/v1/models").status_code == 401 and new.get("/v1/models").status_code == 200
        assert own not in server.service.streams, "whose key is gone has no sessions"


# --------------------------------------------------------------------------------------------------------- workers


def test_a_worker_is_told_by_a_private_file_and_not_by_its_command_line(monkeypatch, tmp_path):
    monkeypatch.setenv("CAM", f"rtsp://me:{SECRET}@cam/1")
    text = f"""
        [server]
        devices = ["cuda:1", "cpu"]
        port = 5
        [webhook]
        url = "http://127.0.0.1:1/{SECRET}"
        secret = "{SECRET}"
        [[sources]]
        name = "a"
        url_env = "CAM"
        fps = 2
        [[sources]]
        name = "b"
        url = "synthetic"
        [[keys]]
        name = "x"
        key = "{ADMIN}"
    """
    config = read_config(None, text=text)
    settings = config.server_settings()
    dealing = Dealing(tmp_path, config, settings, None)
    place = dealing.places[0]
    place.run, place.port = 2, 7
    words = dealing.command(place)
    assert SECRET not in " ".join(words) and ADMIN not in " ".join(words)
    path = Path(words[words.index("--config") + 1])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.delenv("CAM")
    told = read_config(path)
    mine = told.server_settings()
    assert [(one.name, one.url, one.fps) for one in mine.sources] == [("a", f"rtsp://me:{SECRET}@cam/1", 2.0)]
    assert mine.webhook == settings.webhook and mine.all_keys == settings.all_keys and mine.proxies == ("127.0.0.1",)
    assert told.model.device == "cuda:1" and told.server.devices == []


def test_workers_are_told_of_a_changed_file_and_keep_their_sources(tmp_path):
    path, folder = tmp_path / "onlooker.toml", tmp_path / "private"
    folder.mkdir()
    text = FILE.replace("[server]", '[server]\ndevices = ["cpu", "cpu"]')
    path.write_text(text)
    file = ConfigFile(path, {})
    dealing = Dealing(folder, file.config, file.config.server_settings(), file)
    router = Router(dealing.settings, Workers(dealing.places, dealing.command), dealing)
    for place in dealing.places:
        dealing.command(place)
    path.write_text(
        text.replace("blue heart", "red star").replace('"pocket"', '"other"')
        + '[[sources]]\nname = "roof"\nurl = "synthetic"\n'
    )
    told = asyncio.run(router.reload())
    assert told == {"applied": ["sources.roof added", "sources.door changed"], "needs_restart": ["model.name"]}
    names = [[one.name for one in place.sources] for place in dealing.places]
    assert names == [["door", "roof"], ["yard"]] and len(router.settings.sources) == 3
    first = read_config(folder / "0.toml")
    assert [one.name for one in first.sources] == ["door", "roof"] and first.model.name == "pocket"
    assert first.server_settings().sources[0].rules[0].prompt == "say yes when you see a red star."
    yard = next(one for one in router.settings.sources if one.name == "yard")
    rule = Rule.from_dict(HEART | {"threshold": 0.9})
    listed = rule.as_dict() | {"looks": 3, "alerts": 0, "probability": 0.5, "highest": None}
    asyncio.run(dealing.note_rules("yard", [listed]))
    assert dealing.places[1].sources == (replace(yard, rules=(rule,)),)
    told = asyncio.run(router.reload())
    assert told == {"applied": [], "needs_restart": ["model.name"]} and router.settings.sources[1].rules == (rule,)
    path.write_text("[server")
    with pytest.raises(Refusal, match="TOML"):
        asyncio.run(router.reload())
    assert len(router.settings.sources) == 3


@pytest.mark.parametrize("usual", ["threshold", "silence", "much_changed.py", "much_changed.py:threshold=0.25"])
def test_rules_are_written_back_as_they_are_read_whatever_the_usual_policy(tmp_path, monkeypatch, usual):
    """Also with a policy in a file, which no rule may name, and by several workers; and a rule of another policy."""
    monkeypatch.chdir(tmp_path)
    Path("much_changed.py").write_text(POLICY, encoding="utf-8")
    path, folder = tmp_path / "onlooker.toml", tmp_path / "private"
    folder.mkdir()
    text = FILE.replace("[server]", '[server]\ndevices = ["cpu", "cpu"]')
    path.write_text(text.replace("[model]", f'[model]\nresponse = "{usual}"'))
    file = ConfigFile(path, {})
    settings = file.config.server_settings()
    dealing = Dealing(folder, file.config, settings, file)
    for place in dealing.places:
        dealing.command(place)
    body = {"name": "calm", "prompt": "say yes when it is calm."}
    rules = [Rule.from_dict(body, settings.response), Rule.from_dict(body | {"name": "plain", "policy": "threshold"})]
    listed = [
        json.loads(json.dumps(rule_told(rule, settings.response)))
        | {"looks": 3, "alerts": 0, "probability": None, "highest": None}
        for rule in rules
    ]
    asyncio.run(dealing.note_rules("yard", listed))
    again = next(one for one in file.read().server_settings().sources if one.name == "yard").rules
    assert [registry.describe(one.policy) for one in again] == [registry.describe(one.policy) for one in rules]
    assert [one.name for one in again] == ["calm", "plain"]
    router = Router(dealing.settings, Workers(dealing.places, dealing.command), dealing)
    assert asyncio.run(router.reload())["needs_restart"] == [], "what runs is what is written"
    told = read_config(folder / "1.toml").server_settings().sources
    assert [registry.describe(one.policy) for one in told[0].rules] == [registry.describe(one.policy) for one in rules]


POLICY = """
from dataclasses import dataclass
from onlooker.core.contracts import SILENT, SPEAK, ResponsePolicy
from onlooker.core.state import StreamState

@dataclass(frozen=True)
class MuchChanged(ResponsePolicy):
    threshold: float = 0.5

    def new_state(self):
        return StreamState()

    def decide(self, moment, state):
        return SPEAK if moment.kept_ratio >= self.threshold else SILENT
"""
