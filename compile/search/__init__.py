"""Search for the fastest correct form of a step."""
