"""Measure answers: suites and readers, causal replay, controls, runs as files, comparison and report."""
