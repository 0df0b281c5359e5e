"""Statistics of many tensors at once, computed on the tensors' device."""
