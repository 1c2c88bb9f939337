"""Which models come with the package."""

BUILT_IN = {
    name: name.replace("-", "_")
    for name in ("pocket", "pocket-aware", "pocket-naive", "pocket-neutral", "pocket-notes", "pocket-stc")
}
"""Names of the models that come with the package, and their folders in this room."""
NEWEST = "which shape came last?"
"""What every built-in model was taught to say about the newest thing."""
COMMENTARY = dict.fromkeys(BUILT_IN, NEWEST) | {"pocket-notes": "say what comes now."}
"""What a commentary asks the built-in models, which know only the questions that they were taught."""
