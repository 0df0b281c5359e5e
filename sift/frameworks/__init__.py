"""Parts that the adapters for Lightning, Hugging Face and Accelerate share."""
