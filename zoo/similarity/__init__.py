"""How alike two embeddings are, as parts with one interface (`zoo.similarity.similarity.Similarity`)."""
