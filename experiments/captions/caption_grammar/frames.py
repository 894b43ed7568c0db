"""Sentences of other registers: frames with slots, their paraphrases, weaker forms and contraries."""

import zlib
from dataclasses import dataclass
from random import Random

from caption_grammar.grammar import sentence

Option = str | tuple[str, ...]
"""What fills a slot; a tuple lists ways to say the same."""


@dataclass(frozen=True)
class Frame:
    """One fact that many sentences tell.

    `same` templates mean the same, `weaker` ones follow from them, `contrary` ones cannot be true beside them; filling a
    slot of `exclusive` with another option makes them false too.
    """

    slots: dict[str, tuple[Option, ...]]
    same: tuple[str, ...]
    contrary: tuple[str, ...]
    weaker: tuple[str, ...] = ()
    exclusive: tuple[str, ...] = ()


Fill = dict[str, Option]


def sample_fill(random: Random, frame: Frame, split: str) -> Fill:
    """A random filling; a tenth of all fillings is held out."""
    while True:
        fill = {name: random.choice(options) for name, options in frame.slots.items()}
        key = frame.same[0] + "|".join(map(str, fill.values()))
        if (zlib.crc32(key.encode()) % 10 == 0) == (split == "heldout"):
            return fill


def say(random: Random, template: str, fill: Fill) -> str:
    """A template filled, each slot with a random one of its synonyms."""
    words = {name: option if isinstance(option, str) else random.choice(option) for name, option in fill.items()}
    return sentence(template.format(**words))


def derive_frame(random: Random, frame: Frame, fill: Fill) -> tuple[str, str, str]:
    """A sentence of a frame, one that follows from it and one that contradicts it."""
    first, second = random.sample(frame.same, 2)
    weaker = random.choice(frame.weaker) if frame.weaker and random.random() < 0.3 else second
    return say(random, first, fill), say(random, weaker, fill), contradict(random, frame, fill)


def contradict(random: Random, frame: Frame, fill: Fill) -> str:
    """A contrary of the frame, or the frame (full or weakened as often as in entailments) with one slot changed."""
    if not frame.exclusive or random.random() < 0.5:
        return say(random, random.choice(frame.contrary), fill)
    slot = random.choice(frame.exclusive)
    other = random.choice([option for option in frame.slots[slot] if option != fill[slot]])
    forms = frame.weaker if frame.weaker and random.random() < 0.3 else frame.same
    telling = [t for t in forms if f"{{{slot}}}" in t] or [t for t in frame.same if f"{{{slot}}}" in t]
    return say(random, random.choice(telling), fill | {slot: other})
