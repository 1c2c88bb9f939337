"""Fixtures of more than one test module in this folder."""

import sys
from pathlib import Path

from running_server import client, jpegs, mp4, pocket, session, shared

sys.path.append(str(Path(__file__).parents[1] / "video/live"))  # live tests here start the same programs

__all__ = ["client", "jpegs", "mp4", "pocket", "session", "shared"]
