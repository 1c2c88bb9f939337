"""Twins of methods for measurements: the same but for one thing, which is what a published claim says makes the gain.

Each file is a method that is named by its path (`--also benchmarks/twins/random_rows.py:top_tokens=147`); none is part
of the package.
"""
