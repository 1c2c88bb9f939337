"""Which models come with the package."""

BUILT_IN = {
    name: name.replace("-", "_")
    for name in ("pocket", "pocket-aware", "pocket-naive", "pocket-neutral", "pocket-notes", "pocket-stc")
}
"""Names of the models that come with the package, and their folders in this room."""
