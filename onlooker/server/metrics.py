"""Prometheus metrics, in a registry of their own; labels are few and bounded."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from onlooker.core.events import Alert, Answer
from onlooker.engine.stream_queue import QueuedFrame, Taken
from onlooker.server.observing import Observer
from onlooker.server.quality import TEXTS
from onlooker.server.question import Question
from onlooker.server.stream import Stream

if TYPE_CHECKING:
    from onlooker.server.outgoing import Outgoing
    from onlooker.server.service import Service

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
STOOD_IN = ("unprepared", "unsaid")
"""Why something slower, or coarser, stood in for what a method wants of a frame."""
_COUNTS = (0, 1, 2, 4, 8, 16, 32, 64, 128)


class Metrics(Observer):
    """Counts what the worker tells, and what the web side refuses. Each server has its own."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self.lost = {"dropped": 0, "skipped": 0, "shed": 0, "refused": 0}
        """Frames of ended sessions that did not reach the model, by reason."""
        self.stood_in = dict.fromkeys(STOOD_IN, 0)
        """Frames of ended sessions for which something stood in, by reason."""
        common = {"registry": self.registry, "namespace": "onlooker"}
        Gauge("info", "What runs here.", ["model"], **common).labels(model).set(1)
        self._received = Counter("frames_received", "Pictures that were pushed and decoded.", **common)
        self._taken = Counter("frames_taken", "Frames that came into memory.", **common)
        self._skipped = Counter("frames_skipped", "Frames taken that the gate did not have encoded.", **common)
        self._seen = Counter("tokens_seen", "Visual tokens before compression.", **common)
        self._kept = Counter("tokens_kept", "Visual tokens after compression.", **common)
        self._lag = Histogram("frame_lag_seconds", "From arrival to memory.", buckets=_SECONDS, **common)
        self._first = Histogram("ask_first_token_seconds", "From question to first token.", buckets=_SECONDS, **common)
        self._whole = Histogram("ask_latency_seconds", "From question to whole answer.", buckets=_SECONDS, **common)
        self._step = Histogram("step_seconds", "One step of the engine.", buckets=_SECONDS, **common)
        self._batch = Histogram("step_frames", "Frames in a step.", buckets=_COUNTS, **common)
        self._asked = Histogram("step_questions", "Questions in a step.", buckets=_COUNTS, **common)
        self._answers = Counter("answers", "Answers, by how they ended.", ["finish"], **common)
        self._alerts = Counter("alerts", "Times a rule spoke.", **common)
        self._failed = Counter("failures", "What failed.", ["what"], **common)
        self._refused = Counter("admission_rejected", "Work refused, by reason.", ["reason"], **common)
        self._requests = Counter("http_requests", "Requests, by status.", ["status"], **common)
        ProcessCollector(registry=self.registry)

    def watch(self, service: "Service") -> None:
        """Read the gauges from this service whenever somebody asks for the metrics."""
        self.registry.register(_Now(service))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def received(self) -> None:
        """A picture was pushed."""
        self._received.inc()

    def refused(self, reason: str) -> None:
        """Work was refused."""
        self._refused.labels(reason).inc()

    def responded(self, status: int) -> None:
        """A request was answered."""
        self._requests.labels(str(status)).inc()

    def forget(self, stream: Stream) -> None:
        """A session ended: what it counted stays counted."""
        for reason, count in stream.lost.items():
            self.lost[reason] += count
        for reason in STOOD_IN:
            self.stood_in[reason] += stream.stats.get(f"frames_{reason}", 0)

    def stepped(self, num_frames: int, num_questions: int, seconds: float) -> None:
        self._step.observe(seconds)
        self._batch.observe(num_frames)
        self._asked.observe(num_questions)

    def took(self, stream: Stream, queued: QueuedFrame, taken: Taken) -> None:
        self._taken.inc()
        self._lag.observe(taken.lag_s)
        if taken.event is not None:
            self._skipped.inc(taken.event.skipped)
            self._seen.inc(taken.event.tokens_seen)
            self._kept.inc(taken.event.tokens_kept)

    def answered(self, question: Question, answer: Answer) -> None:
        self._answers.labels(answer.finish).inc()
        self._first.observe(answer.timing.first_token_s)
        self._whole.observe(answer.timing.total_s)

    def alerted(self, alert: Alert) -> None:
        self._alerts.inc()

    def failed(self, what: str) -> None:
        self._failed.labels(what).inc()


class _Now(Collector):
    """Gauges read at the moment they are asked for, summed over sessions; sessions are no labels, they come and go."""

    def __init__(self, service: "Service") -> None:
        self._service = service

    def collect(self):
        service = self._service
        streams = list(service.streams.values())
        yield GaugeMetricFamily("onlooker_ready", "Is the model loaded?", service.worker.is_ready)
        yield GaugeMetricFamily("onlooker_draining", "Is the server about to end?", service.is_draining)
        yield GaugeMetricFamily("onlooker_sessions", "Sessions open.", len(streams))
        yield GaugeMetricFamily("onlooker_questions", "Questions in flight.", service.worker.num_questions)
        waiting = sum(stream.num_waiting > 0 for stream in streams)
        yield GaugeMetricFamily("onlooker_streams_waiting", "Sessions with a frame waiting.", waiting)
        held = GaugeMetricFamily("onlooker_memory_bytes", "Bytes sessions hold.", labels=["kind"])
        kinds: dict[str, int] = {}
        for stream in streams:
            for kind, count in stream.stats.get("memory_bytes", {}).items():
                kinds[kind] = kinds.get(kind, 0) + count
        for kind, count in sorted(kinds.items()):
            held.add_metric([kind], count)
        yield held
        yield CounterMetricFamily(
            "onlooker_engine_restarts", "Times the engine was started anew.", service.worker.restarts
        )
        yield from _of_receivers(service.outgoing)
        if service.history is not None:
            kept = CounterMetricFamily("onlooker_history_events", "Events for the database.", labels=["result"])
            kept.add_metric(["written"], service.history.database.written)
            kept.add_metric(["dropped"], service.history.database.dropped)
            yield kept
            cut = CounterMetricFamily(
                "onlooker_clips", "Clips of alerts: cut, too late, impossible.", labels=["result"]
            )
            for result in ("made", "missed", "failed"):
                cut.add_metric([result], getattr(service.history.clips, result))
            yield cut
        yield from _of_sources(service)
        lost = CounterMetricFamily("onlooker_frames_lost", "Frames that did not reach the model.", labels=["reason"])
        for reason, past in service.metrics.lost.items():
            lost.add_metric([reason], past + sum(stream.lost[reason] for stream in streams))
        yield lost
        what = "Frames without a prepared step (unprepared), or of which the video's encoder said nothing (unsaid)."
        stood_in = CounterMetricFamily("onlooker_frames_stood_in", what, labels=["reason"])
        for reason, past in service.metrics.stood_in.items():
            stood_in.add_metric([reason], past + sum(stream.stats.get(f"frames_{reason}", 0) for stream in streams))
        yield stood_in
        if (stats := service.worker.stats) is not None:
            yield GaugeMetricFamily(
                "onlooker_degrade_level", "Degrade levels below everything; 0 is good.", stats.level
            )
            background = "Works of lower priority in flight: thoughts, notes of rules."
            yield GaugeMetricFamily("onlooker_background_works", background, stats.background)
            dropped = "Works of lower priority that were dropped: under load, or too old."
            yield CounterMetricFamily("onlooker_background_dropped", dropped, stats.background_dropped)
            yield GaugeMetricFamily("onlooker_engine_load", "Share of the engine's time asked for.", stats.load)
            yield GaugeMetricFamily("onlooker_step_frame_seconds", "What one more frame costs.", stats.frame_s)
            late = "Frames that came into memory later than promised."
            yield CounterMetricFamily("onlooker_frames_late", late, stats.frames.late)


def _of_receivers(outgoing: "Outgoing"):
    """What became of what was told to others than clients."""
    results = ("delivered", "retried", "failed", "dropped")
    if outgoing.webhook is not None:
        sent = CounterMetricFamily("onlooker_webhook_events", "Alerts handed to the webhook.", labels=["result"])
        counts = outgoing.webhook.counts
        for result in results:
            sent.add_metric([result], getattr(counts, result))
        yield sent
    if hooks := outgoing.hooks.counts():
        sent = CounterMetricFamily("onlooker_hook_events", "Alerts for further hooks.", labels=["hook", "result"])
        for name, counts in hooks.items():
            for result in results:
                sent.add_metric([name, result], getattr(counts, result))
        yield sent
    if outgoing.home is not None:
        mqtt = outgoing.home.mqtt
        yield GaugeMetricFamily("onlooker_mqtt_connected", "Is the broker there?", mqtt.is_connected)
        sent = CounterMetricFamily("onlooker_mqtt_messages", "Messages for the broker.", labels=["result"])
        for result in ("delivered", "dropped"):
            sent.add_metric([result], getattr(mqtt.counts, result))
        yield sent
        tried = CounterMetricFamily("onlooker_mqtt_connections", "Connections to the broker.", labels=["result"])
        tried.add_metric(["made"], mqtt.counts.connections)
        tried.add_metric(["failed"], mqtt.counts.failures)
        yield tried


def _of_sources(service: "Service"):
    """How each named source is doing; their names are few, and the operator's own."""
    up = GaugeMetricFamily("onlooker_source_up", "Do pictures of this source come in?", labels=["source"])
    age = GaugeMetricFamily("onlooker_source_frame_age_seconds", "Age of its newest frame.", labels=["source"])
    late = CounterMetricFamily("onlooker_source_frames_late", "Frames later than promised to it.", labels=["source"])
    stale = GaugeMetricFamily("onlooker_source_stale", "Is its newest frame from before?", labels=["source"])
    lag = GaugeMetricFamily("onlooker_source_lag_seconds", "95% of its newest frames' lag is below.", labels=["source"])
    more = "Times it came up again since the server, or its engine, was started."
    again = CounterMetricFamily("onlooker_source_reconnects", more, labels=["source"])
    lost = CounterMetricFamily("onlooker_source_frames_lost", "Frames that did not reach the model.", labels=["source"])
    bad = GaugeMetricFamily("onlooker_source_bad_picture", "Is this wrong with it?", labels=["source", "problem"])
    for told_of in service.watched.describe():
        name, stream = told_of["name"], service.streams.get(told_of["name"])
        up.add_metric([name], told_of["state"] == "live")
        if stream is None:
            continue
        late.add_metric([name], stream.late)
        again.add_metric([name], max(0, stream.connections - 1))
        lost.add_metric([name], sum(stream.lost.values()))
        stale.add_metric([name], stream.is_stale)
        for problem in TEXTS:
            bad.add_metric([name, problem], problem in stream.quality.since)
        if (lag_s := stream.lag(0.95)) is not None:
            lag.add_metric([name], lag_s)
        if (age_s := stream.age_s) is not None:
            age.add_metric([name], age_s)
    yield from (up, age, late, again, lost, stale, bad, lag)
