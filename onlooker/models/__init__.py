"""One file per model family: how it sees, reads, remembers and speaks."""
