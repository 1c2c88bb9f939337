"""What the language model remembers of the stream."""
