"""OpenTelemetry spans of frames and questions, below those of the requests that brought them.

Requests and connections get their spans from FastAPI, which also takes the caller's context (W3C `traceparent`) and
sends what is recorded where the `OTEL_` variables say (extra `otel`). Here each question becomes a span `question` with
`queue`, `prefill` and `decode` below it, and each frame a span `frame` with `queue`, `encode`, `compress`, `prefill`
and `memory`: its share of the steps that it took part in. Words are in no span.
"""

import time
from typing import Any

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.trace import Tracer, TracerProvider

from onlooker import __version__
from onlooker.core.events import Answer
from onlooker.engine.stream_queue import QueuedFrame, Taken
from onlooker.server.observing import Observer
from onlooker.server.question import Question
from onlooker.server.stream import Arrived, Stream

STAGES = {"encode": ("preprocess", "encode", "project"), "compress": ("compress",), "prefill": ("prefill",)}
STAGES |= {"memory": ("memory",)}
"""Spans below a frame, in their order, and the engine's stages that each is made of."""
UNTRACED = frozenset({"/healthz", "/readyz", "/metrics", "/favicon.ico"})
REMEMBERED = 4096
"""Most streams whose stages are known; beyond, the first known are forgotten."""


def of_requests(provider: TracerProvider | None) -> TelemetryConfig:
    """What FastAPI is told: spans of requests, no metrics and no logs of its own, exporters as the environment says."""
    return {
        "tracer_provider": provider,
        "auto_configure": provider is None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "exclude": lambda scope: scope["path"] in UNTRACED,
    }


class Tracing(Observer):
    """Makes the spans. `provider` is who records them; None for whoever is set up for the process, which may be
    nobody."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer: Tracer = trace.get_tracer("onlooker", __version__, provider)
        self._stages: dict[str, dict[str, float]] = {}

    def asked(self, question: Question) -> None:
        """A question was put, by whoever's context this is."""
        facts = _about(question.stream) | ({"onlooker.standing": question.standing} if question.standing else {})
        question.span = self._tracer.start_span("question", attributes=facts, start_time=_at(question.put_s))

    def answered(self, question: Question, answer: Answer) -> None:
        span = question.span
        if not span.is_recording():
            return
        span.set_attributes(
            {
                "gen_ai.usage.input_tokens": answer.usage.context_tokens + answer.usage.prompt_tokens,
                "gen_ai.usage.output_tokens": answer.usage.new_tokens,
                "gen_ai.response.finish_reasons": [answer.finish],
                "onlooker.time_s": answer.time_s,
            }
        )
        end = time.time_ns()
        begun = end - _ns(answer.timing.total_s)
        first = begun + _ns(answer.timing.first_token_s)
        below = trace.set_span_in_context(span)
        put = _at(question.put_s)
        for name, start, stop in (("queue", put, max(put, begun)), ("prefill", begun, first), ("decode", first, end)):
            self._tracer.start_span(name, below, start_time=start).end(stop)

    def took(self, stream: Stream, queued: QueuedFrame, taken: Taken) -> None:
        arrived: Arrived = queued.note
        span = self._tracer.start_span("frame", arrived.context, start_time=_at(queued.arrived_s))
        if not span.is_recording():
            return
        end = time.time_ns()
        span.set_attributes(_about(stream) | {"onlooker.time_s": queued.frame.time_s, "onlooker.lag_s": taken.lag_s})
        if taken.event is not None:
            span.set_attribute("onlooker.tokens_seen", taken.event.tokens_seen)
            span.set_attribute("onlooker.tokens_kept", taken.event.tokens_kept)
        spent = self._spent(stream)
        start = max(_at(queued.arrived_s), end - sum(map(_ns, spent.values())))
        below = trace.set_span_in_context(span)
        self._tracer.start_span("queue", below, start_time=_at(queued.arrived_s)).end(start)
        for name, seconds in spent.items():
            stop = min(end, start + _ns(seconds))
            self._tracer.start_span(name, below, start_time=start).end(stop)
            start = stop
        span.end(end)

    def _spent(self, stream: Stream) -> dict[str, float]:
        """Seconds of each stage since the stream's last frame."""
        assert stream.session is not None, "it has taken a frame"
        totals = stream.session.totals.stage_s
        now = {name: sum(totals.get(one, 0.0) for one in parts) for name, parts in STAGES.items()}
        before = self._stages.pop(stream.id, {})
        self._stages[stream.id] = now
        while len(self._stages) > REMEMBERED:
            del self._stages[next(iter(self._stages))]
        return {name: max(0.0, seconds - before.get(name, 0.0)) for name, seconds in now.items()}


class Observers(Observer):
    """Several that are told the same."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def stepped(self, num_frames: int, num_questions: int, seconds: float) -> None:
        for one in self._observers:
            one.stepped(num_frames, num_questions, seconds)

    def took(self, stream: Stream, queued: QueuedFrame, taken: Taken) -> None:
        for one in self._observers:
            one.took(stream, queued, taken)

    def answered(self, question: Question, answer: Answer) -> None:
        for one in self._observers:
            one.answered(question, answer)

    def alerted(self, alert: Any) -> None:
        for one in self._observers:
            one.alerted(alert)

    def failed(self, what: str) -> None:
        for one in self._observers:
            one.failed(what)

    def refused(self, reason: str) -> None:
        for one in self._observers:
            one.refused(reason)


def _about(stream: Stream) -> dict[str, str]:
    """Which stream it is; names of the operator's sources, numbers of all others."""
    about = {"onlooker.session": stream.id}
    return about | ({"onlooker.source": stream.id} if stream.owner is None else {})


def _at(moment: float) -> int:
    """A moment of the monotonic clock as nanoseconds since the epoch."""
    return time.time_ns() - _ns(time.monotonic() - moment)


def _ns(seconds: float) -> int:
    return round(1e9 * seconds)
