"""From text to packed rows: prompts, token ids, packing, batches."""
