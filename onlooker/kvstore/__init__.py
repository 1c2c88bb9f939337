"""The KV cache itself: immutable blocks of un-rotated keys with explicit positions, in tiers."""
