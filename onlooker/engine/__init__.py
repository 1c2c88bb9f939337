"""Streams from frame to answer, with no input or output of its own but saved sessions."""

from onlooker.engine.answer_stream import AnswerStream
from onlooker.engine.engine import Engine
from onlooker.engine.files import read
from onlooker.engine.noting import Note, take_notes
from onlooker.engine.preparing import ready
from onlooker.engine.sampling import Decoding
from onlooker.engine.saving import Saved
from onlooker.engine.scheduler import Scheduler
from onlooker.engine.session import Session
from onlooker.engine.slo import SLO, Busy
from onlooker.engine.stream_queue import StreamQueue
from onlooker.engine.trace import Trace
from onlooker.engine.watching import Watch
from onlooker.engine.window_engine import WindowEngine

__all__ = [
    "SLO",
    "AnswerStream",
    "Busy",
    "Decoding",
    "Engine",
    "Note",
    "Saved",
    "Scheduler",
    "Session",
    "StreamQueue",
    "Trace",
    "Watch",
    "WindowEngine",
    "read",
    "ready",
    "take_notes",
]
