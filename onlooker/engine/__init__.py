"""Streams from frame to answer, with no input or output of its own."""

from onlooker.engine.engine import Engine
from onlooker.engine.lane import Lane
from onlooker.engine.noting import Note, take_notes
from onlooker.engine.promises import Busy, Promises
from onlooker.engine.sampling import Decoding
from onlooker.engine.saving import Saved
from onlooker.engine.scheduler import Scheduler
from onlooker.engine.session import AnswerStream, Session, Trace
from onlooker.engine.watching import Watch

__all__ = [
    "AnswerStream",
    "Busy",
    "Decoding",
    "Engine",
    "Lane",
    "Note",
    "Promises",
    "Saved",
    "Scheduler",
    "Session",
    "Trace",
    "Watch",
    "take_notes",
]
