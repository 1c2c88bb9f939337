"""Many streams on one model: each step encodes, compresses and reads for all of them at once."""

import typing
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from onlooker.core.checks import whole
from onlooker.core.contracts import Adapter, Codec, MemoryPolicy, Method, SideTower, VideoModel
from onlooker.core.errors import InputError
from onlooker.core.events import Failed, FrameTaken
from onlooker.core.frame import Frame
from onlooker.core.spans import Layout, Plan, Span, SpanKind
from onlooker.core.state import StreamState
from onlooker.core.unread import Unread
from onlooker.engine.computing import computing
from onlooker.engine.emission import Emission, Writer, match, read_all
from onlooker.engine.eye import Eye, encoder_in
from onlooker.engine.hearing import listen
from onlooker.engine.methods import Methods
from onlooker.engine.noting import Note, take_notes
from onlooker.engine.packing import Work
from onlooker.engine.passes import Passes, make_passes, pass_sizes
from onlooker.engine.reading import Reading
from onlooker.engine.request import InFlight, Request, accept_all, all_said, release
from onlooker.engine.sampling import Decoding
from onlooker.engine.saving import Saved, load
from onlooker.engine.seeing import Arrival, Patch, Seen
from onlooker.engine.session import Session
from onlooker.engine.stages import Stages
from onlooker.engine.thinking import begin_thought, write_thoughts
from onlooker.kvstore import KVStore, store_settings


class Engine:
    """A model with one method of each kind, ready to open sessions.

    Methods are given by their kinds (`encoder`, `compressor`, `memory`: see `core/kinds.py`), as names (`"rekv"`),
    names with settings (`"rekv:topk=8"`), paths of your own method files, or instances. Not thread-safe: one thread
    owns an engine and its sessions. The default memory is ReKV with its two settings beyond the paper, without which it
    finds nothing from half an hour ago (`docs/results.md`).

    `passes` says how tokens go through the language model: `"plain"` is the reference, `"packed"` one attention launch
    a layer for all streams (a Triton kernel on CUDA), `"auto"` packed on CUDA where the model's head size allows it.

    Raises `InputError` for unknown methods or settings and `ModelError` when a method needs what the model lacks.
    """

    serves: ClassVar[type] = VideoModel
    """The models it is an engine for; `from_pretrained` finds the class that fits by it."""

    def __init__(
        self,
        model: VideoModel,
        *,
        layout: Layout | None = None,
        device_budget_bytes: int | None = None,
        host_budget_bytes: int | None = None,
        kv: str | Mapping[str, str | Codec] = "",
        disk: str = "",
        arithmetic: str = "model",
        profile: bool = False,
        passes: Literal["auto", "plain", "packed"] = "auto",
        **methods: str | Method,
    ) -> None:
        if not isinstance(model, VideoModel):
            given = model if isinstance(model, str) else type(model).__name__
            raise InputError("an engine needs a loaded model", given=given, do=f"Engine.from_pretrained({given!r})")
        if layout is not None and layout not in typing.get_args(Layout):
            do = f"one of: {', '.join(typing.get_args(Layout))}"
            raise InputError("there is no such layout of positions", given=str(layout), do=do)
        self._model = model
        self.serving = Methods(methods)
        wanted = self.serving.check(model) & model.described
        self._stored = store_settings(kv, device_budget_bytes, host_budget_bytes, disk)
        codecs = {name: codec for name, codec in self._stored.items() if name.endswith("_codec")}
        for codec in codecs.values():
            codec.check(model)
        model.compute_in(arithmetic)
        self.passes: Passes = make_passes(model, passes, codecs.get("device_codec"), asked=self.memory.num_queries > 0)
        self._begin(profile, layout or model.spec.layout)
        self.eye = Eye(model, self.serving, wanted, self.stages)

    def _begin(self, profile: bool, layout: Layout = "pack") -> None:
        self.stages = Stages(profile)
        self.layout: Layout = layout
        self._blank: KVStore | None = None
        self.sessions: weakref.WeakSet[Session] = weakref.WeakSet()

    @property
    def model(self) -> VideoModel:
        """The model all sessions share."""
        return self._model

    @property
    def adapters(self) -> Sequence[Adapter]:
        """Trained parts of the model."""
        return self.model.adapters

    @property
    def side_towers(self) -> Sequence[SideTower]:
        """Further vision towers of the model."""
        return self.model.side_towers

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.spec.device

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods as they were configured, by kind; `use` may have put others in their place."""
        return self.serving.configured

    @property
    def hears_codec(self) -> bool:
        """Whether a method looks at `Frame.codec`: open the video with `codec=True` then."""
        return self.serving.hears_codec

    @property
    def memory(self) -> MemoryPolicy:
        """The memory in place."""
        return self.serving.memory

    def wait(self) -> None:
        """Until the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """A picture at the size the model wants (see `VideoModel.resize`); may run in any thread."""
        return self.model.resize(image)

    @classmethod
    def from_pretrained(
        cls, source: str, *, dtype: str = "auto", device: str = "auto", pairs: bool | None = None, **settings: Any
    ) -> "Engine":
        """An engine around a model: `"pocket"`, `"pocket-aware"`, a local folder or a Hugging Face id.

        `dtype` is auto, float32, bfloat16 or float16; `device` is auto, cpu, cuda, cuda:N or mps; `pairs` reads frames
        two at a time or not (default: what suits the family); further arguments are those of `Engine`. A model without
        an adapter of its own gets a `WindowEngine`. Raises `ModelError` when the model cannot be loaded.
        """
        from onlooker import models

        model: Any = models.load_any(source, dtype=dtype, device=device, pairs=pairs)
        fitting = next(one for one in (cls, *cls.__subclasses__()) if isinstance(model, one.serves))
        return fitting(model, **settings)

    @computing
    def prepare(
        self,
        *,
        most_frames: int = 16,
        most_tokens: int = 1024,
        picture: tuple[int, int] = (384, 384),
        on_step: Callable[[str], None] = lambda name: None,
    ) -> None:
        """Make steps of fixed shape for the encoder and the language model, captured as graphs on CUDA; none later.

        `most_frames` go through the encoder at once, `most_tokens` through one pass; more are split. `picture` (rows,
        cols) is the size of the frames, for models that take any. `on_step` is told the name of every step when it is
        ready. Raises `ModelError` where the model or a method has no such steps.
        """
        whole("most_frames", most_frames, least=1)
        whole("most_tokens", most_tokens, least=1)
        rows, cols = (whole("a side of the picture", side, least=1, most=2**16) for side in picture)
        extras = self.eye.prepare((rows, cols), most_frames, on_step)
        self.passes.prepare(pass_sizes(most_tokens), on_step, extras)

    def use(self, **methods: Method) -> None:
        """Serve with other settings of the same methods, by kind, from the next frame on; prepared steps and states
        stay. A session keeps the memory that it was opened with."""
        self.serving.use(methods)
        self.eye.take_over()

    def about_model(self) -> dict[str, Any]:
        """What a saved session must find again in the model, as JSON holds it."""
        spec = self.model.spec
        dtype = str(spec.dtype).removeprefix("torch.")
        trained = {part.name: part.version for part in (*self.adapters, *self.side_towers)}
        facts = {"model": spec.name, "dtype": dtype, "patch_frames": self.model.patch_frames}
        return facts | ({"adapters": trained} if trained else {})

    def new_states(self) -> dict[str, StreamState]:
        """What is remembered of a stream before its first frame, by kind of method, and by name of trained part."""
        states = self.serving.new_states()
        for part in (*self.adapters, *self.side_towers):
            states[part.name] = part.new_state()
        return states | {encoder_in(tower): self.serving.encoder.new_state() for tower in self.side_towers}

    def open(self, *, trace: bool = False) -> Session:
        """A new stream. With `trace`, `Session.trace` tells of the newest frame which patches were recomputed and which
        tokens were kept (costs a wait for the device at each frame)."""
        session = Session(self, trace)
        self.sessions.add(session)
        return session

    def load(self, saved: Saved, *, trace: bool = False) -> Session:
        """A session that goes on where `Session.export` was taken, on an engine of the same model and methods (which
        may do with less by now). Raises `InputError` for another model, other methods, or damage of any kind."""
        return load(self, saved, trace=trace)

    @computing
    def new_store(self) -> KVStore:
        """A store that holds the model's prefix, which is read once for all sessions."""
        if self._blank is None:
            wanted = self.methods["memory"].num_queries  # pyright: ignore[reportAttributeAccessIssue] - a memory
            store = KVStore(self.model.spec, self.model.rotary, num_queries=wanted, **self._stored)
            ids = self.model.prefix_ids()
            chunk = store.begin("prefix", 0.0, 0.0, *self.model.place_text(len(ids)))
            self.passes.run([Work(self.model.embed_text(ids), chunk)])
            chunk.seal()
            self._blank = store
        assert self._blank is not None
        return self._blank.fork()

    @computing
    def step(
        self, arrivals: Sequence[tuple[Session, Frame]], requests: Sequence[InFlight] = ()
    ) -> list[FrameTaken | Failed]:
        """Take in one frame of each of several sessions and move questions on by one pass, all in one batch.

        Returns one event per arrival: `Failed` when that session had no room for its frame (`CapacityError`) or its
        memory policy failed; the others are not affected. Raises `InputError` or `SessionClosed` before anything is
        done when an arrival may not be pushed.
        """
        events, texts = self._step(arrivals, requests)
        all_said(texts)
        self.think(
            [(s, event) for (s, _), event in zip(arrivals, events, strict=True) if isinstance(event, FrameTaken)]
        )
        return events

    def think(self, taken: Sequence[tuple[Session, FrameTaken]]) -> None:
        """Write down what the thinker wants written after these frames, before anything else is done. A scheduler does
        it beside the streams instead, and frames do not wait."""
        replies = [reply for session, event in taken if (reply := begin_thought(session, event)) is not None]
        while replies:
            while pending := [reply for reply in replies if not reply.done]:
                self.step_requests(pending)
            replies = write_thoughts(self, [session for session, _ in taken])

    @computing
    def step_requests(self, requests: Sequence[InFlight]) -> list[str]:
        """Move questions on by one pass; the new text of each. Raises what the first that failed has failed of."""
        return all_said(self._step([], requests)[1])

    @computing
    def advance(
        self,
        arrivals: Sequence[tuple[Session, Frame]],
        requests: Sequence[InFlight],
        looking: AbstractContextManager[None] | None = None,
    ) -> tuple[list[FrameTaken | Failed], list[str | Exception]]:
        """`step` and `step_requests` in one pass: an event per arrival, and the new text per question, or what it
        failed of: the frames are in memory then, and the other questions are answered. `looking` is held while the
        words are looked at, which waits for the device (see `Ahead.looking`)."""
        return self._step(arrivals, requests, looking)

    def _step(
        self,
        arrivals: Sequence[tuple[Session, Frame]],
        requests: Sequence[InFlight],
        looking: AbstractContextManager[None] | None = None,
    ) -> tuple[list[FrameTaken | Failed], list[str | Exception]]:
        self.check_arrivals(arrivals)
        self.check_requests(requests)
        sessions = [session for session, _ in arrivals]
        batch = self.eye.see(arrivals) if arrivals else []

        writers = [Writer(session, self.to_read(arrival)) for session, arrival in zip(sessions, batch, strict=True)]
        with self.stages("prefill", sessions, self.device):
            scores = read_all(self.passes.run, writers, [request.pending() for request in requests])
        events = []
        with self.stages("memory", sessions, self.device):
            for arrival, writer in zip(batch, writers, strict=True):
                events.append(self.remember(arrival, writer))
        ends = [(w.session, w.end) for w, event in zip(writers, events, strict=True) if isinstance(event, FrameTaken)]
        listen(self.model, ends)
        with looking or nullcontext():
            return events, accept_all(requests, scores)

    def to_read(self, arrival: Arrival) -> list[Reading]:
        """What the model reads of a frame that was seen."""
        if arrival.seen is None or self.serving.memory.holds_tokens:
            return []
        return arrival.seen.emission.readings(self.model, self.layout)

    def check_arrivals(self, arrivals: Sequence[tuple[Session, Frame]]) -> None:
        """Raise `InputError` or `SessionClosed` unless every frame may be pushed now."""
        if len({id(session) for session, _ in arrivals}) < len(arrivals):
            raise InputError("a step takes one frame per session", given="a session twice", do="use two steps")
        for session, frame in arrivals:
            if not session.belongs_to(self):
                raise InputError("a step takes sessions of its own engine", given="one of another", do="use its engine")
            session.check_next(frame)

    def check_requests(self, requests: Sequence[InFlight]) -> None:
        """Raise `InputError` when a question was put to a session of another engine."""
        if not all(request.session.belongs_to(self) for request in requests):
            raise InputError("a step takes questions of its own engine", given="one of another", do="use its engine")

    def note(
        self, session: Session, text: str, time_s: float | None, kind: SpanKind, embeddings: torch.Tensor | None = None
    ) -> Span:
        """Write text, or rows of that name, into a session's memory (see `Session.note` and `Session.prefix`);
        `take_notes` does it for several in one pass."""
        (done,) = take_notes(self, [Note(session, text, time_s, kind, embeddings)])
        if isinstance(done, Exception):
            raise done
        return done

    def prefix_rows(self, name: str, given: torch.Tensor | None = None) -> torch.Tensor:
        """The rows of a soft prefix: those given, or those that the model knows by the name. Raises `InputError`."""
        if given is not None:
            return given
        if (rows := self.model.prefixes.get(name)) is None:
            known = sorted(self.model.prefixes)
            do = (
                f"one of: {', '.join(known)}"
                if known
                else "name a file of them behind the model: MODEL+people.safetensors"
            )
            raise InputError("the model knows no soft prefix of that name", given=name, do=do)
        return rows

    def submit(
        self, session: Session, question: str, time_s: float, visible: tuple[float, float], decoding: Decoding
    ) -> Request:
        """A question in flight, put to what a session saw between two times (see `Session.submit`)."""
        return Request(session, question, time_s, visible, decoding)

    # ------------------------------------------------------------------------------------------------------ seeing

    @computing
    def held(self, session: Session) -> Sequence[Reading]:
        """What a question reads of what is seen and not in memory: what the compressor holds, and frames that are no
        whole patch yet (the last one stands for those to come), as in a clip that ends here. The stream's own states do
        not change. Done once, until the next frame is taken."""
        if not session.waiting and not session.pending:
            return ()
        if session.looked_ahead is None:
            given, _ = self.closing(session, aside=True)
            session.looked_ahead = given.readings(self.model, self.layout)
        return session.looked_ahead

    @computing
    def closing(self, session: Session, *, aside: bool = False) -> tuple[Emission, Seen | None]:
        """All that was seen and is not remembered, as if the stream ended here: what the compressor holds, and frames
        that wait for their patch, which is then seen. `aside`: the stream's own states do not change."""
        if session.waiting:
            (seen,) = self.eye.look([(session, Patch(session.waiting))], aside=aside, ends=True)
            return seen.emission, seen
        states = session.forks() if aside else session.begin(0)
        return match(
            self.serving.compressor, self.serving.compressor.flush(states["compressor"]), session.pending, 0
        ), None

    # ------------------------------------------------------------------------------------------------- remembering

    def remember(self, arrival: Arrival, writer: Writer) -> FrameTaken | Failed:
        """A frame that was seen and read is remembered, or refused."""
        session, time_s, seen, plan = writer.session, arrival.frame.time_s, arrival.seen, Plan()
        is_skipped = arrival.is_skipped
        held = bool(arrival.waiting) and not is_skipped
        taken = FrameTaken(time_s, session.frames, 0, 0, False, None, held=held, skipped=is_skipped)
        try:
            if (error := arrival.error or writer.error) is not None:
                raise error
            if seen is not None:
                given = seen.emission
                trace, share = seen.trace() if session.traces else (session.trace, None)
                plan = self.keep(session, given, writer)
                session.trace = trace
                counts = {"tokens_seen": given.tokens_seen, "tokens_kept": given.tokens_kept}
                held = bool(arrival.waiting or given.pending) and not is_skipped
                taken = replace(taken, **counts, refreshed=seen.refreshed, recomputed_ratio=share, held=held)
                session.given_out(given, time_s)
        except Exception as error:  # a full store or a faulty policy is this stream's affair, not that of the others
            writer.undo()
            return session.refused(time_s, release(error))
        if arrival.patch is not None or not is_skipped:
            session.hold(arrival.waiting, time_s)
        return session.taken(taken, plan, arrival.gated)

    def keep(self, session: Session, given: Emission, writer: Writer) -> Plan:
        """Keep what was given out: the blocks that a writer has stored, or the tokens themselves for a memory that
        reads at the question; of the others what the memory plans. An error leaves everything as it was before."""
        if not self.serving.memory.holds_tokens:
            return session.keep_blocks(writer.spans)
        for patch, tokens in given.parts:
            session.absorb(Unread(tokens, patch.start_s, patch.end_s))
        return Plan()
