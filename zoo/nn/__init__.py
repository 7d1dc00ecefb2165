"""Parts that architectures are put together from."""
