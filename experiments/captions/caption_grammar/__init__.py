"""A small compositional grammar of everyday scenes, news, talk and facts that makes triplets and graded pairs.

A scene (who, does what, to what, where, how many, what kind) is plain data with a logic of its own. A premise describes
a scene; an entailment says the same or less; a contradiction describes a scene that excludes it. Contradictions share as
many words with the premise as entailments do, so only the meaning tells them apart.
"""
