"""Fixtures of the page's tests."""

from browsing import camera, chromium, episode, film, launch, launch_with_camera, open_page, served, whole_film

__all__ = ["camera", "chromium", "episode", "film", "launch", "launch_with_camera", "open_page", "served", "whole_film"]
