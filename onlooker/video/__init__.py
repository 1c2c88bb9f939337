"""Pictures in, with their true times: files, live sources, frames handed in."""
