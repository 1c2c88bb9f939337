"""When the model should speak by itself."""
