"""Programs that Loopwise starts: their processes, and the container of SageMaker that scripts expect around them."""
