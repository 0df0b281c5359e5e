"""Batches loaded by other processes and machines, in DataLoader's order and with its random numbers."""
