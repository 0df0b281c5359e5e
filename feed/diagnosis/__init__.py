"""Whether moving the loading of batches elsewhere pays: measure a loop, predict its step, and advise."""
