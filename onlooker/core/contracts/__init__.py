"""The plug-in interfaces: read this first.

A method is a frozen dataclass of settings; what it remembers about a stream is a `StreamState` that `new_state` makes
and the session owns. A method never learns which model it serves; it declares what it `needs`, a model what it
`offers`, and the two are compared when an engine is built.

One page for each reader, all names importable from here:

| page | who reads it |
|---|---|
| `method.py` | everyone who writes a method |
| `encode.py`, `vision.py` | encoders: what they fill in, and the tower that they run |
| `codec.py` | codecs: how keys and values lie in a tier |
| `gate.py`, `compress.py`, `memory.py` | gates, compressors, memories |
| `refine.py`, `respond.py`, `think.py` | refiners, response policies, thinkers |
| `schedule.py` | schedules of many streams |
| `model.py`, `vision.py` | everyone who adapts a model |
| `adapt.py`, `towers.py`, `decide.py` | trained parts attached to a model (adapters, further towers) or beside it |
| `packed.py` | kernels and prepared encoders; not importable from here |
"""

from onlooker.core.contracts.adapt import Adapter
from onlooker.core.contracts.codec import Codec
from onlooker.core.contracts.compress import Compress, Compressor
from onlooker.core.contracts.decide import Decider
from onlooker.core.contracts.encode import CELLS, EncoderAccelerator, Prepared
from onlooker.core.contracts.gate import PICTURE_SIZES, Gate, MemoryView
from onlooker.core.contracts.memory import MemoryPolicy
from onlooker.core.contracts.method import Method
from onlooker.core.contracts.model import (
    Attention,
    ClipAnswer,
    ClipModel,
    ModelSpec,
    TokenChoice,
    TokenConstraint,
    VideoModel,
)
from onlooker.core.contracts.refine import Look, Refiner
from onlooker.core.contracts.respond import FRAME_SIGNALS, SILENT, SPEAK, Decision, Moment, Outcome, ResponsePolicy
from onlooker.core.contracts.schedule import SchedulePolicy, Waiting
from onlooker.core.contracts.think import Thinker, Thought
from onlooker.core.contracts.towers import SideTower
from onlooker.core.contracts.vision import Encoded, VisionLayer, VisionTower

__all__ = [
    "CELLS",
    "FRAME_SIGNALS",
    "PICTURE_SIZES",
    "SILENT",
    "SPEAK",
    "Adapter",
    "Attention",
    "ClipAnswer",
    "ClipModel",
    "Codec",
    "Compress",
    "Compressor",
    "Decider",
    "Decision",
    "Encoded",
    "EncoderAccelerator",
    "Gate",
    "Look",
    "MemoryPolicy",
    "MemoryView",
    "Method",
    "ModelSpec",
    "Moment",
    "Outcome",
    "Prepared",
    "Refiner",
    "ResponsePolicy",
    "SchedulePolicy",
    "SideTower",
    "Thinker",
    "Thought",
    "TokenChoice",
    "TokenConstraint",
    "VideoModel",
    "VisionLayer",
    "VisionTower",
    "Waiting",
]
