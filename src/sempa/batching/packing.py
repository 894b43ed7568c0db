"""Many sequences in one row without padding: shared prefixes stand once, and a mask keeps the branches apart.

A row is a forest of *segments*. Each segment continues its parent: its tokens see the parent's chain of tokens and
their own past, nothing else, and positions count along that chain. So the instructions that all prompts begin with run
once per row, a prompt runs once for all its responses, and every hidden state equals that of the separate sequence.

    template ─┬─ sentence 1 ─┬─ chosen 1
              │              └─ rejected 1
              └─ sentence 2 ─┬─ chosen 2
                             └─ rejected 2
"""

import math
import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sempa.batching.prompts import Preference, prefix_length
from sempa.kernels import PrefixGroup, make_prefix_group


@dataclass
class PackedRow:
    """One packed row: of each token its id, its position in its own sequence, and its segment; of each segment its
    parent (−1: none) and the row offset of its chain's last token (−1: no token yet).
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def add(self, tokens: Sequence[int], parent: int = -1) -> int:
        """Append a segment that continues segment `parent` (−1: a fresh start) and return its number."""
        before = self.ends[parent] if parent >= 0 else -1
        begin = self.positions[before] + 1 if before >= 0 else 0
        segment = len(self.parents)
        self.parents.append(parent)
        self.tokens.extend(tokens)
        self.positions.extend(range(begin, begin + len(tokens)))
        self.segments.extend([segment] * len(tokens))
        # An empty segment ends where its parent does.
        self.ends.append(len(self.tokens) - 1 if tokens else before)
        return segment

    def add_behind_prefix(self, sequences: Sequence[Sequence[int]], most: int | None = None) -> Tensor:
        """Append sequences behind their shared prefix (at most `most` tokens); returns their ends' offsets `[n]`."""
        prefix = shared_prefix(sequences)[:most]
        root = self.add(prefix)
        return torch.tensor([self.ends[self.add(sequence[len(prefix) :], root)] for sequence in sequences])

    def attention_mask(self, device: torch.device | str = "cpu") -> Tensor:
        """`[length, length]` boolean, true where the query (row) may see the key (column)."""
        owner = torch.tensor(self.segments, device=device)
        return self.ancestors().to(device)[owner][:, owner].tril_()

    def ancestors(self) -> Tensor:
        """`[segments, segments]` boolean, true where a segment (row) continues another (column) or is it."""
        sees = torch.eye(len(self.parents), dtype=torch.bool)
        for segment, parent in enumerate(self.parents):
            if parent >= 0:
                sees[segment] |= sees[parent]
        return sees

    def prefix_groups(self) -> tuple[PrefixGroup, ...]:
        """The row cut into its trees, and each into the prefix that all of it share and the branches below that.

        Adjacent segments that share nothing are branches without a prefix. Raises `ValueError` when the tokens of a
        tree or of a branch are not contiguous.
        """
        tree: list[int] = []
        branch: list[int] = []
        for segment, parent in enumerate(self.parents):
            tree.append(tree[parent] if parent >= 0 else segment)
            branch.append(branch[parent] if parent >= 0 and parent != tree[segment] else segment)
        if tree != sorted(tree) or branch != sorted(branch):
            raise ValueError("the segments of a branch must be added one after another")
        branched = {tree[parent] for parent in self.parents if parent >= 0}
        tops = [top if top in branched else -1 for top in tree]
        sees, groups = self.ancestors(), []
        for top, members in groupby(self.segments, tops.__getitem__):
            segments = list(members)
            owners = [branch[segment] for segment in segments]
            prefix = owners.count(top)
            sizes = [len(list(tokens)) for _, tokens in groupby(owners[prefix:])]
            groups.append(make_prefix_group(prefix, sizes, torch.tensor(segments), sees))
        return tuple(groups)

    def separate(self) -> tuple[Tensor, Tensor]:
        """The row's sequences unpacked, padded on the right: token ids `[sequences, longest]`, and for each token of
        the row its place in them, flattened, `[length]` (the first of several for a shared token).
        """
        mask = self.attention_mask()
        leaves = sorted(set(range(len(self.parents))) - set(self.parents))
        chains = [mask[self.ends[leaf]].nonzero()[:, 0] for leaf in leaves if self.ends[leaf] >= 0]
        row = torch.tensor(self.tokens)
        tokens = pad_sequence([row[chain] for chain in chains], batch_first=True)
        places = torch.zeros_like(row)
        for number, chain in reversed(list(enumerate(chains))):
            places[chain] = number * tokens.shape[1] + torch.arange(len(chain))
        return tokens, places

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Tensor | tuple[PrefixGroup, ...]]:
        """What `hidden_states` takes for this row: tokens and positions `[1, length]`, mask and prefix groups."""
        tokens, positions = (torch.tensor([ids], device=device) for ids in (self.tokens, self.positions))
        mask = self.attention_mask(device)[None, None]
        prefix_groups = tuple(part.to(device) for part in self.prefix_groups())
        return {"tokens": tokens, "positions": positions, "mask": mask, "prefix_groups": prefix_groups}


@dataclass(frozen=True)
class PreferenceRow:
    """A packed row of preferences, and which hidden states predict which response tokens.

    `examples` `[n]` are indices into the list that was packed. `source`, `target`, `owner` `[M]`: the hidden state at
    row offset `source` predicts token `target` of response `owner = example_in_row · responses + k`. `lengths`
    `[n, responses]` counts tokens; `answer` `[M]` is false where the template closes a response.
    """

    packed: PackedRow
    examples: tuple[int, ...]
    source: Tensor
    target: Tensor
    owner: Tensor
    lengths: Tensor
    answer: Tensor


@dataclass(frozen=True)
class SentenceRow:
    """A packed row of prompts to embed: the state at row offset `ends[i]` belongs to the sequence `members[i]`."""

    packed: PackedRow
    ends: Tensor
    members: tuple[int, ...]


def pack_preferences(preferences: Sequence[Preference], row_tokens: int, multiple: int = 1) -> list[PreferenceRow]:
    """Pack preferences of equally many responses into rows of at most `row_tokens` tokens (one may exceed that)."""
    if not preferences:
        return []
    root = shared_prefix([preference.prompt for preference in preferences])
    sizes = [len(p.prompt) - len(root) + sum(len(response) - 1 for response in p.responses) for p in preferences]
    bins = fill_bins(sizes, row_tokens - len(root), multiple)
    return [_preference_row(preferences, members, root) for members in bins]


def next_fit(sizes: Sequence[int], capacity: int, most: int = sys.maxsize) -> list[list[int]]:
    """The indices of `sizes` in bins of at most `capacity` (an item alone may exceed that) and of at most `most` items.

    Largest first: items of like size share a bin, so that the branches of a row need little padding beside each other,
    and a bin that is too large for memory fails at once.
    """
    bins: list[list[int]] = []
    room = 0
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        if not bins or sizes[index] > room or len(bins[-1]) == most:
            bins.append([])
            room = capacity
        bins[-1].append(index)
        room -= sizes[index]
    return bins


def fill_bins(sizes: Sequence[int], capacity: int, multiple: int = 1) -> list[list[int]]:
    """As few bins as `next_fit` needs, rounded up to a `multiple` where sizes suffice, and about equally full.

    Bisection finds the smallest capacity that needs no more bins.
    """
    fewest = math.ceil(len(next_fit(sizes, capacity)) / multiple) * multiple
    smallest = bisect_left(range(capacity + 1), True, key=lambda tried: len(next_fit(sizes, tried)) <= fewest)
    return next_fit(sizes, smallest)


def pack_sentence_rows(sequences: Sequence[Sequence[int]], row_tokens: int, multiple: int = 1) -> list[SentenceRow]:
    """All sequences, behind the prefix they share, in rows of at most `row_tokens` tokens (one may exceed that)."""
    prefix = len(shared_prefix(sequences))
    rows = []
    for members in fill_bins([len(sequence) - prefix for sequence in sequences], row_tokens - prefix, multiple):
        row = PackedRow()
        ends = row.add_behind_prefix([sequences[i] for i in members])
        rows.append(SentenceRow(row, ends, tuple(members)))
    return rows


def pack_texts(sequences: Sequence[Sequence[int]], row_tokens: int) -> list[PackedRow]:
    """Pack texts into rows of at most `row_tokens` tokens; a longer text is cut, each piece packed like a text."""
    pieces = [s[begin : begin + row_tokens] for s in sequences for begin in range(0, len(s), row_tokens)]
    rows = []
    for members in fill_bins(list(map(len, pieces)), row_tokens):
        rows.append(PackedRow())
        for member in members:
            rows[-1].add(pieces[member])
    return rows


def shared_prefix(sequences: Sequence[Sequence[int]]) -> Sequence[int]:
    """The longest run of token ids that all sequences begin with (each keeps at least its last token to itself)."""
    length = min([min(map(len, sequences)) - 1, *(prefix_length(sequences[0], s) for s in sequences[1:])])
    return sequences[0][: max(0, length)]


def _preference_row(preferences: Sequence[Preference], members: Sequence[int], root: Sequence[int]) -> PreferenceRow:
    row = PackedRow()
    shared = row.add(root)
    source, target, owner, lengths, answer = [], [], [], [], []
    for place, index in enumerate(members):
        preference = preferences[index]
        prompt = row.add(preference.prompt[len(root) :], shared)
        for k, response in enumerate(preference.responses):
            begin = len(row.tokens)
            # The last token predicts nothing, so it is left out; the prompt's last one predicts each branch's first.
            row.add(response[:-1], prompt)
            source += [row.ends[prompt], *range(begin, begin + len(response) - 1)]
            target += response
            owner += [place * len(preference.responses) + k] * len(response)
            answer += [True] * (len(response) - preference.closing) + [False] * preference.closing
        lengths.append([len(response) for response in preference.responses])
    return PreferenceRow(row, tuple(members), *map(torch.tensor, (source, target, owner, lengths, answer)))
