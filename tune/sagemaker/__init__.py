"""Jobs written for SageMaker: its API's job files."""
