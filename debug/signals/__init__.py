"""Facts of a training step that statistics of single tensors do not show."""
