"""What alignment changed: similarity, the embedding space, and what is left of the language model."""
