"""Pictures in, with their true times: files, live sources, frames handed in."""

from onlooker.video.ahead import Ahead
from onlooker.video.file import open_video
from onlooker.video.live import LiveSource, open_live
from onlooker.video.live_place import is_live
from onlooker.video.live_state import LiveEvent, LiveSettings, LiveStatus
from onlooker.video.push import PushSource
from onlooker.video.sampling import Sampler
from onlooker.video.source import Source, SourceInfo, SourceReport

__all__ = [
    "Ahead", "LiveEvent", "LiveSettings", "LiveSource", "LiveStatus", "PushSource", "Sampler", "Source", "SourceInfo",
    "SourceReport", "is_live", "open_live", "open_video",
]  # fmt: skip
