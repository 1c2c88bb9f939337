"""Measure answers."""
