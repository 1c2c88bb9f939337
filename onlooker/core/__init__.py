"""The words every room shares: frames, tokens, spans, records, contracts, errors. Imports nothing of ours."""
