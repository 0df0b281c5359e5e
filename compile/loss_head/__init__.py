"""Cross entropy of a linear layer whose logits are never held all at once."""
