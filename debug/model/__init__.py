"""Names, tensors, shards and source lines of the user's models."""
