"""Measurements: each prints a short table and one JSON line."""
