"""Tasks for lmms-eval."""
