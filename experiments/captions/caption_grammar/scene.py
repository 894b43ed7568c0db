"""Scenes as slots with feature values, and the logic between them: entailment, contradiction, overlap.

A value holds features; a feature is a path from the general to the special, as in `kind=animal/dog/poodle`. One value
entails another when each feature of the other is a prefix of its own; two values clash when some feature that both
have parts ways. A word's meaning is thus plain data, and soundness is a comparison of tuples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

MANY = 99  # the upper end of "some": no number is known

Features = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Value:
    """What fills a slot: the name is its identity, the features are its meaning."""

    name: str
    features: Features = field(compare=False, hash=False, repr=False, default_factory=dict)
    heldout: bool = field(compare=False, repr=False, default=False)


@dataclass(frozen=True)
class Count:
    """A number known to lie from `low` to `high`, both included; an exact number has them equal."""

    low: int
    high: int


Slot = Value | Count
ONE = Count(1, 1)


@dataclass(frozen=True)
class Scene:
    """What a sentence says: the grammar it belongs to, and the slots it fills."""

    kind: str
    slots: Mapping[str, Slot] = field(hash=False)

    def get(self, name: str) -> Slot | None:
        """Return what fills a slot, or None."""
        return self.slots.get(name)

    def having(self, **changes: Slot | None) -> "Scene":
        """Return the scene with slots replaced, and with those removed that are given as None."""
        slots = {**self.slots, **changes}
        return Scene(self.kind, {name: value for name, value in slots.items() if value is not None})


@dataclass(frozen=True)
class Statement:
    """A scene that is said to hold, or (negated) not to hold."""

    scene: Scene
    negated: bool = False


def value_entails(one: Slot, other: Slot) -> bool:
    """Return whether all that is `one` is `other` too (a poodle is a dog; three are some)."""
    if isinstance(one, Count):
        return isinstance(other, Count) and other.low <= one.low and one.high <= other.high
    mine = one.features
    return all(name in mine and mine[name][: len(path)] == path for name, path in other.features.items())


def value_clashes(one: Slot, other: Slot) -> bool:
    """Return whether nothing can be both (a dog is no cat; two are not three)."""
    if isinstance(one, Count):
        return isinstance(other, Count) and (one.high < other.low or other.high < one.low)
    for name, path in other.features.items():
        mine = one.features.get(name)
        if mine is not None:
            shared = min(len(mine), len(path))
            if mine[:shared] != path[:shared]:
                return True
    return False


def scene_entails(one: Scene, other: Scene) -> bool:
    """Return whether each slot that `other` fills is entailed by the same slot of `one`."""
    if one.kind != other.kind:
        return False
    return all(name in one.slots and value_entails(one.slots[name], value) for name, value in other.slots.items())


def scene_clashes(one: Scene, other: Scene) -> bool:
    """Return whether some slot that both fill clashes, the two scenes being about the same moment."""
    if one.kind != other.kind:
        return False
    return any(name in one.slots and value_clashes(one.slots[name], value) for name, value in other.slots.items())


def entails(premise: Statement, hypothesis: Statement) -> bool:
    """Return whether the hypothesis must be true where the premise is."""
    if premise.negated:
        return hypothesis.negated and scene_entails(hypothesis.scene, premise.scene)
    if hypothesis.negated:
        return scene_clashes(premise.scene, hypothesis.scene)
    return scene_entails(premise.scene, hypothesis.scene)


def contradicts(premise: Statement, hypothesis: Statement) -> bool:
    """Return whether the hypothesis must be false where the premise is true."""
    if premise.negated:
        return not hypothesis.negated and scene_entails(hypothesis.scene, premise.scene)
    if hypothesis.negated:
        return scene_entails(premise.scene, hypothesis.scene)
    return scene_clashes(premise.scene, hypothesis.scene)
