"""A trained adapter for other tools: merged folders, sentence-transformers, GGUF, the model card."""
