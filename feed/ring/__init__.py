"""Shared memory without a name: a worker writes tensors into it, and the training process uses them in place."""
