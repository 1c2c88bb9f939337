"""Spend less on the vision encoder."""
