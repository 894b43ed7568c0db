"""The language model: finding and loading it, its forward pass over packed rows, its head, LoRA, sampling."""
