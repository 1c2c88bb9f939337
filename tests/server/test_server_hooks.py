"""Further receivers of alerts: each its own sources, rules and shape of body."""

import contextlib
import json
import string
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from running_server import eventually, running
from webhook_receiver import SECRET, receiver

from onlooker.core.errors import InputError
from onlooker.core.events import Alert
from onlooker.core.frame import Frame
from onlooker.respond import Rule
from onlooker.server.config import Faulty, read_config
from onlooker.server.hooks import FIELDS, Hook, Hooks
from onlooker.server.settings import Source
from onlooker.server.webhooks import alert_event

Sent = list[tuple[dict[str, str], bytes]]


@contextlib.contextmanager
def listener() -> Iterator[tuple[str, Sent]]:
    """A web server that takes everything; its address, and the headers and bodies that came."""
    came: Sent = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            came.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Take) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/topic", came
        finally:
            server.shutdown()
            thread.join()


def alert(rule: str = "person", text: str | None = None) -> Alert:
    frame = Frame(np.zeros((8, 8, 3), np.uint8), 5.0, 1000.0)
    return Alert(rule, 'Is "she" there?', 7.0, 0.9, 5.0, frame, "alert", text)


def sent_as(body: str, text: str | None = None) -> tuple[dict[str, str], bytes]:
    with listener() as (url, came):
        hooks = Hooks([Hook("one", url, body=body)])
        hooks.send(alert(text=text), "door")
        eventually(lambda: came)
        hooks.close()
        assert hooks.counts()["one"].delivered == 1
        return came[0]


def test_slack_hears_a_text():
    headers, body = sent_as("slack")
    assert json.loads(body) == {"text": '*door*: person: Is "she" there?'}
    assert headers["content-type"] == "application/json" and "webhook-signature" not in headers


def test_ntfy_hears_words_and_a_title():
    headers, body = sent_as("ntfy", "she ist müde")
    assert body.decode() == "she ist müde" and headers["title"] == "door: person"
    assert headers["content-type"].startswith("text/plain")


def test_a_template_of_json_stays_json_whatever_is_said():
    _, body = sent_as('{"said": "$text", "of": "$stream", "costs": "$$5"}', 'she said "}\n\\')
    assert json.loads(body) == {"said": 'she said "}\n\\', "of": "door", "costs": "$5"}
    _, body = sent_as("$rule at ${time_s}: $prompt")
    assert body.decode() == 'person at 7.0: Is "she" there?'


def test_every_field_of_a_template_is_there():
    template = " ".join(f"{name}=${name}" for name in FIELDS)
    body, _ = Hook("a", "http://127.0.0.1", body=template).shaped(alert_event(alert(text="yes"), "door"))
    values = dict(part.partition("=")[::2] for part in body.decode().replace('Is "she" there?', "prompt").split())
    assert set(values) == set(FIELDS) and all(values.values())
    assert string.Template(template).is_valid()


@pytest.mark.parametrize("body", ["$colour", "$rule costs $", "teams", ""])
def test_a_template_that_names_nothing_is_refused(body):
    with pytest.raises(InputError):
        Hook("a", "http://127.0.0.1", body=body)


def test_only_what_is_wanted_is_sent():
    hook = Hook("a", "http://127.0.0.1", body="slack", sources=("door",), rules=("person", "picture"))
    assert hook.wants(alert(), "door") and not hook.wants(alert(), "yard") and not hook.wants(alert("car"), "door")


def test_the_file_names_hooks_and_keeps_their_secrets_elsewhere(monkeypatch):
    monkeypatch.setenv("TOPIC", "https://ntfy.example/topic")
    text = '[[webhooks]]\nname = "phone"\nurl_env = "TOPIC"\nbody = "ntfy"\nrules = ["person"]\n'
    (hook,) = read_config(None, text=text).server_settings().hooks
    assert (hook.url, hook.body, hook.rules, hook.secret) == ("https://ntfy.example/topic", "ntfy", ("person",), None)
    assert "ntfy.example" not in repr(hook)
    with pytest.raises(Faulty, match=r"webhooks.phone: a standard body is signed"):
        read_config(None, text=text.replace('"ntfy"', '"standard"'))
    with pytest.raises(Faulty, match=r"webhooks.phone: there is no body of that name"):
        read_config(None, text=text.replace('"ntfy"', '"teams"'))


def test_a_running_server_tells_each_hook_its_alerts(pocket):
    often = Rule.from_dict({"name": "often", "prompt": "is there anything?", "policy": "clock", "period_s": 1})
    with listener() as (url, came), receiver() as signed:
        hooks = (
            Hook("words", url, body="slack", sources=("door",)),
            Hook("other", url, body="ntfy", rules=("never",)),
            Hook("signed", signed.url, SECRET),
        )
        sources = (Source("door", "synthetic:1", rules=(often,)), Source("yard", "synthetic:2", rules=(often,)))
        with running(pocket, sources=sources, source_fps=4.0, hooks=hooks) as server, server.client() as client:
            eventually(
                lambda: len(came) >= 2 and {one["data"]["stream"] for _, _, one in signed.arrived} == {"door", "yard"}
            )
            assert 'onlooker_hook_events_total{hook="words",result="delivered"}' in client.get("/metrics").text
        assert all(json.loads(body)["text"].startswith("*door*: often") for _, body in came) and signed.forged == 0
        assert signed.arrived[0][2]["data"]["evidence"]["media_type"] == "image/jpeg"
