"""Streams from frame to answer, with no input or output of its own."""
