"""What is written in the pictures, or said beside them, as timed text (the auxiliary texts of Video-RAG).

Luo et al., "Video-RAG", NeurIPS 2025 (arXiv 2411.13093): text on screen, speech and detections help a video model more
than further frames. A reader turns a frame into lines; what is new goes into the stream's memory as a note of its own
kind, is found by recall, cited, and never later than its moment. The reader of the package is RapidOCR (PaddleOCR's
networks, Apache-2.0), an extra: `pip install "onlooker[ocr]"`. Changed: read while watching instead of beforehand.
"""

from typing import Any, ClassVar, Protocol

from onlooker.core.checks import number, whole
from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.core.spans import SpanKind

REMEMBERED = 64
"""Lines that are not news while they are among the newest of so many."""


class TextReader(Protocol):
    """Turns a frame into lines of text. Holds weights and no stream state."""

    kind: ClassVar[SpanKind]
    """What kind of note its lines are."""

    def read(self, frame: Frame) -> list[str]:
        """The lines, from top to bottom; empty when there are none."""
        ...


class Ocr:
    """Text in the picture, by RapidOCR. Raises `InputError` when it is not installed."""

    kind: ClassVar[SpanKind] = "text"

    def __init__(self, least: float = 0.6) -> None:
        """`least` is the certainty (0 to 1) from which a line counts; Video-RAG takes 0.5."""
        number("least", least, least=0.0, most=1.0, do="0.6")
        try:
            from rapidocr_onnxruntime import RapidOCR  # pyright: ignore[reportMissingImports] - an extra
        except ImportError as error:
            do = 'pip install "onlooker[ocr]"'
            raise InputError("text in pictures is read by RapidOCR", given="it is not installed", do=do) from error
        self._least, self._read = least, RapidOCR()

    def read(self, frame: Frame) -> list[str]:
        """The lines of which it is certain enough."""
        found: Any
        found, _ = self._read(frame.image[..., ::-1].copy())
        return [text.strip() for _, text, sure in found or () if float(sure) >= self._least and text.strip()]


class NewLines:
    """Of one stream: when to read, and which lines are news."""

    def __init__(self, reader: TextReader, every_s: float = 1.0, remembered: int = REMEMBERED) -> None:
        """A frame is read every `every_s` seconds; a line that is among the newest `remembered` is no news."""
        self.reader = reader
        self._every_s = number("every_s", every_s, least=0.0, unit="seconds", do="use 1")
        self._most = whole("remembered", remembered, least=1)
        self._read_s: float | None = None
        self._known: dict[str, None] = {}

    def look(self, frame: Frame) -> list[str]:
        """The new lines of a frame; none when it is not its turn."""
        # Half a millisecond of grace: times of frames are rounded.
        if self._read_s is not None and frame.time_s - self._read_s < self._every_s - 5e-4:
            return []
        self._read_s = frame.time_s
        lines = list(dict.fromkeys(self.reader.read(frame)))
        new = [line for line in lines if line.casefold() not in self._known]
        for line in lines:
            self._known.pop(line.casefold(), None)
            self._known[line.casefold()] = None
        for line in list(self._known)[: -self._most]:
            del self._known[line]
        return new
