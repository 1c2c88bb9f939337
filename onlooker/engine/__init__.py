"""Streams from frame to answer, with no input or output of its own."""

from onlooker.engine.engine import Engine
from onlooker.engine.sampling import Decoding
from onlooker.engine.session import AnswerStream, Session, Trace

__all__ = ["AnswerStream", "Decoding", "Engine", "Session", "Trace"]
