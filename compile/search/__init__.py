"""Search for the fastest correct variant of a training step."""
