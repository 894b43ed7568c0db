"""Triplets and graded pairs without a file: a small compositional grammar of everyday scenes, news, talk and facts.

A scene (who, does what, to what, where, how many, what kind) is plain data with a logic of its own; a premise says it, an
entailment says it or less, a contradiction says a scene that clashes with it. Contradictions share words with the premise
as entailments do, so that only the meaning tells them apart.
"""

from sempa.captions.make import make_pairs, make_triplets

__all__ = ["make_pairs", "make_triplets"]
