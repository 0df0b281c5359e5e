"""Cross entropy of a linear layer without materialised logits."""
