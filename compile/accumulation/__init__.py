"""Accumulation of gradients: the batches of an update, their counts, and the average over batches and ranks."""
