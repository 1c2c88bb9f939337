"""Pictures in, with their true times: files, live sources, frames handed in."""

from onlooker.video.file import open_video
from onlooker.video.live import LiveEvent, LiveSettings, LiveSource, LiveStatus, open_live
from onlooker.video.live_place import is_live
from onlooker.video.push import PushSource
from onlooker.video.sampling import Sampler
from onlooker.video.source import Source, SourceInfo, SourceReport

__all__ = [
    "LiveEvent", "LiveSettings", "LiveSource", "LiveStatus", "PushSource", "Sampler", "Source", "SourceInfo",
    "SourceReport", "is_live", "open_live", "open_video",
]  # fmt: skip
