"""Recording of a whole training step as one CUDA graph."""
