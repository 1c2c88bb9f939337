"""Pictures in, with their true times: files, live sources, frames handed in."""

from onlooker.video.ahead import Ahead, changed
from onlooker.video.frame_sampling import FrameSampler
from onlooker.video.live import LiveSource, open_live
from onlooker.video.live_place import is_live
from onlooker.video.live_state import LiveEvent, LiveSettings, LiveStatus
from onlooker.video.opening import open_video
from onlooker.video.push import PushSource
from onlooker.video.source import Source, SourceInfo, SourceReport
from onlooker.video.web import is_web

__all__ = [
    "Ahead",
    "FrameSampler",
    "LiveEvent",
    "LiveSettings",
    "LiveSource",
    "LiveStatus",
    "PushSource",
    "Source",
    "SourceInfo",
    "SourceReport",
    "changed",
    "is_live",
    "is_web",
    "open_live",
    "open_video",
]  # fmt: skip
