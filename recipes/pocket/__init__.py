"""The pocket models: a tiny video language model trained on Pocket World."""
