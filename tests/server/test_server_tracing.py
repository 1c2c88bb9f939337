"""Spans of requests, frames and questions, as an exporter gets them."""

import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from running_server import eventually, opened, push, running

from onlooker.server.settings import Limits, Source

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
FROM = {"traceparent": f"00-{TRACE}-{CALLER}-01"}


@pytest.fixture
def traced():
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def below(exporter: InMemorySpanExporter, parent: ReadableSpan) -> list[ReadableSpan]:
    spans = exporter.get_finished_spans()
    found = [one for one in spans if one.parent is not None and one.parent.span_id == parent.context.span_id]
    return sorted(found, key=lambda span: (span.start_time, span.end_time))


def test_a_question_is_traced_from_its_caller_to_its_last_token(pocket, traced, jpegs):
    provider, exporter = traced
    with running(pocket, provider=provider) as server, server.client() as client:
        path = opened(client)
        push(client, path, jpegs[:2])
        asked = {"question": "how many secret shapes are visible now?", "max_tokens": 3}
        reply = client.post(f"{path}/ask", json=asked, headers=FROM)
        assert reply.status_code == 200
        eventually(
            lambda: any(one.parent and one.parent.span_id == int(CALLER, 16) for one in exporter.get_finished_spans())
        )
    (request,) = [one for one in exporter.get_finished_spans() if one.parent and one.parent.span_id == int(CALLER, 16)]
    assert request.context.trace_id == int(TRACE, 16) and request.attributes["url.path"] == f"{path}/ask"
    (question,) = below(exporter, request)
    assert question.name == "question" and question.attributes["onlooker.session"] == path.rpartition("/")[2]
    assert question.attributes["gen_ai.usage.output_tokens"] == reply.json()["usage"]["new_tokens"]
    parts = below(exporter, question)
    assert [one.name for one in parts] == ["queue", "prefill", "decode"]
    assert abs(question.start_time - parts[0].start_time) < 1e6 and parts[-1].end_time <= question.end_time
    assert all(one.start_time <= one.end_time for one in parts)
    assert all("secret" not in str(span.attributes) for span in exporter.get_finished_spans()), "words are in no span"


def test_a_frame_is_traced_through_the_engine(pocket, traced, jpegs):
    provider, exporter = traced
    with running(pocket, provider=provider) as server, server.client() as client:
        path = opened(client)
        push(client, path, jpegs[:3])
        client.get("/healthz")
    frames = named(exporter, "frame")
    assert len(frames) == 3 and all("onlooker.source" not in frame.attributes for frame in frames)
    for frame in frames:
        assert frame.parent is not None, "the request that pushed it"
        parts = below(exporter, frame)
        assert {one.name for one in parts} == {"queue", "encode", "compress", "prefill", "memory"}
        assert sum(one.end_time - one.start_time for one in parts) <= frame.end_time - frame.start_time + 1000
        encode = next(one for one in parts if one.name == "encode")
        assert encode.end_time > encode.start_time
    assert not [one for one in exporter.get_finished_spans() if "/healthz" in str(one.attributes)]


def test_sources_are_named_and_refusals_are_errors(pocket, traced):
    provider, exporter = traced
    limits = Limits(question_chars=50)
    with running(pocket, limits, provider=provider, sources=(Source("door", "synthetic:1"),)) as server:
        eventually(lambda: named(exporter, "frame"))
        stream = server.service.streams["door"]
        with server.client() as client:
            client.post("/v1/streaming/sessions/door/ask", json={"question": "what?", "json_schema": {"type": "x"}})
        eventually(lambda: named(exporter, "question"))
    frame = named(exporter, "frame")[0]
    assert frame.attributes["onlooker.source"] == "door" == stream.id and frame.parent is None
    (question,) = named(exporter, "question")
    assert not question.status.is_ok and question.status.description


class Collector(BaseHTTPRequestHandler):
    came: list[tuple[str, bytes]] = []

    def do_POST(self) -> None:
        self.came.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_the_environment_says_where_spans_go(tmp_path):
    Collector.came.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        environment = os.environ | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "OTEL_SERVICE_NAME": "the-attic",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        words = [sys.executable, "-m", "onlooker", "serve", "pocket", "--device", "cpu", "--port", "0"]
        with subprocess.Popen(
            [*words, "--source", "door=synthetic:1"], env=environment, stderr=subprocess.DEVNULL
        ) as process:
            try:
                eventually(lambda: any(b"frame" in body for _, body in Collector.came))
            finally:
                process.terminate()
                process.wait()
        server.shutdown()
        thread.join()
    path, body = next(one for one in Collector.came if b"frame" in one[1])
    assert path == "/v1/traces" and b"the-attic" in body and b"onlooker.source" in body


def test_without_a_recorder_nothing_is_recorded(pocket, jpegs):
    with running(pocket) as server, server.client() as client:
        path = opened(client)
        began = time.monotonic()
        push(client, path, jpegs[:1])
        assert not server.service.tracing._stages and time.monotonic() > began
