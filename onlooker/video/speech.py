"""What is said in a video file, as timed text (the speech of Video-RAG's auxiliary texts).

Luo et al., "Video-RAG", NeurIPS 2025 (arXiv 2411.13093): automatic speech recognition beside the frames. The reader of
the package is faster-whisper (MIT; OpenAI's Whisper models, which it fetches by name), an extra: `pip install
"onlooker[speech]"`. A sentence goes into the stream's memory as a note of the kind `speech` at the moment at which it
ends, never before; Whisper hears half a minute at a time, so how a sentence is written may owe something to what is
said up to half a minute later.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from onlooker.core.errors import InputError
from onlooker.core.spans import SpanKind


@dataclass(frozen=True, slots=True)
class Spoken:
    """A sentence, and the stream times between which it is said."""

    start_s: float
    end_s: float
    text: str


class SpeechReader(Protocol):
    """Turns the sound of a file into sentences. Holds weights and no stream state."""

    kind: ClassVar[SpanKind]
    """What kind of note a sentence is."""

    def read(self, file: Path) -> Iterator[Spoken]:
        """The sentences in order, made as they are asked for. Raises `InputError` for a file without sound."""
        ...


class Whisper:
    """Speech by faster-whisper. Raises `InputError` when it is not installed, or has no such model."""

    kind: ClassVar[SpanKind] = "speech"

    def __init__(self, model: str = "base", device: str = "auto", language: str | None = None) -> None:
        """`model` is a name that faster-whisper knows (`tiny`, `base`, `small`, `turbo`, ...), a hub id, or a folder;
        `language` is a code such as `en`, None for what is heard in the first half minute."""
        try:
            from faster_whisper import WhisperModel  # pyright: ignore[reportMissingImports] - an extra
        except ImportError as error:
            do = 'pip install "onlooker[speech]"'
            raise InputError("speech is read by faster-whisper", given="it is not installed", do=do) from error
        try:
            self._model: Any = WhisperModel(model, device=device, compute_type="default")
        except Exception as error:  # of the hub, of the network, and the library's own
            given, do = f"{model} ({str(error)[:120]})", "tiny, base, small, medium, turbo, or a folder"
            raise InputError("there is no such speech model", given=given, do=do) from error
        self._language = language

    def read(self, file: Path) -> Iterator[Spoken]:
        """The sentences of a file."""
        try:
            segments, _ = self._model.transcribe(
                str(file), language=self._language, vad_filter=False, condition_on_previous_text=False
            )
        except (IndexError, ValueError, OSError) as error:  # PyAV has no kind of its own for a file without sound
            raise InputError("the file has no sound", given=str(file), do="leave speech out") from error
        for one in segments:
            if text := one.text.strip():
                yield Spoken(float(one.start), float(one.end), text)


class SpokenSoFar:
    """Of one stream: the sentences that have ended by a stream time, each once."""

    def __init__(self, reader: SpeechReader, file: Path, at_s: float = 0.0) -> None:
        """`at_s` is the stream time at which the file begins."""
        self._sentences, self._at_s = reader.read(file), at_s
        self._next: Spoken | None = next(self._sentences, None)

    def until(self, time_s: float) -> list[Spoken]:
        """Those that have ended since the last call; times are the stream's."""
        ended = []
        while self._next is not None and self._next.end_s + self._at_s <= time_s + 1e-6:
            one = self._next
            ended.append(Spoken(one.start_s + self._at_s, one.end_s + self._at_s, one.text))
            self._next = next(self._sentences, None)
        return ended

    def rest(self) -> list[Spoken]:
        """Those that were said after the last frame."""
        left = [] if self._next is None else [self._next]
        self._next = None
        return [
            Spoken(one.start_s + self._at_s, one.end_s + self._at_s, one.text)
            for one in itertools.chain(left, self._sentences)
        ]
