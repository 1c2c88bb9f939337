"""Suites about what a system says unasked: when it speaks, and what it tells while it watches."""
