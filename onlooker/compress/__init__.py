"""Fewer visual tokens before the language model."""
