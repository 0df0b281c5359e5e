"""Capture of the tensors that a step saves, from hooks to the writer's thread."""
