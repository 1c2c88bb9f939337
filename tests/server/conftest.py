"""Fixtures of more than one test module in this folder."""

from running_server import client, jpegs, mp4, pocket, session, shared

__all__ = ["client", "jpegs", "mp4", "pocket", "session", "shared"]
