"""Iterators of the loader: order of batches, hand-over, repetition after deaths, and resumption."""
