"""Sessions over the network."""
