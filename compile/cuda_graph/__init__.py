"""A whole training step as one CUDA graph."""
