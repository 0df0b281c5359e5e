"""The ``torch.compile`` backend and its graph passes."""
