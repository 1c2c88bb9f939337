"""Pocket World: a procedural video world with exact ground truth."""
