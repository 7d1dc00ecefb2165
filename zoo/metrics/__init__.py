"""What is measured: pure functions of embeddings."""
