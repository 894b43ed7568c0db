"""What a model is trained and scored on: triplets, scored pairs, the built-in captions."""
