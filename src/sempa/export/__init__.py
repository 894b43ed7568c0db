"""A trained adapter for other tools: merged folders, sentence-transformers, the model card."""
