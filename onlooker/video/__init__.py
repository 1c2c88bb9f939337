"""Pictures in, with their true times: files, live sources, frames handed in."""

from onlooker.video.file import open_video
from onlooker.video.push import PushSource
from onlooker.video.sampling import Sampler
from onlooker.video.source import Source, SourceInfo, SourceReport

__all__ = ["PushSource", "Sampler", "Source", "SourceInfo", "SourceReport", "open_video"]
