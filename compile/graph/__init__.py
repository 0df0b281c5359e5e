"""Backend of ``torch.compile`` and its graph passes."""
