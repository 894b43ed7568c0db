"""How an objective's terms run: packed rows through policy and base, then losses, then the adapter's gradient."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sempa.config import Config
from sempa.lanes import in_lanes
from sempa.lora import adapter_disabled, lora_parameters
from sempa.models import can_pack, evaluating, states_of_rows
from sempa.packing import Row


@dataclass(frozen=True, eq=False)
class Term:
    """A part of the objective: `rows` to run, and `finish`, which turns their states into a loss and metrics.

    Each row comes with the seed of its dropout. A term that compares policy and base has one row. What the base says on
    it, which `finish` gets too, is `kept` of a pass over that row alone or, where that will not do, `renewed` from the
    states of another pass.
    """

    rows: list[tuple[int, Row]]
    finish: Callable[[list[Tensor], Tensor | None], tuple[Tensor, dict[str, float]]]
    kept: Callable[[], Tensor] | None = None
    renewed: Callable[[Tensor], Tensor] | None = None

    @property
    def tokens(self) -> int:
        """How many tokens its rows have."""
        return sum(len(row.tokens) for _, row in self.rows)


# A row with its seed and its term.
Run = tuple[int, Row, Term]


def add_terms(config: Config, model: PreTrainedModel, terms: Sequence[Term], lanes: int = 1) -> dict[str, float]:
    """Add the gradient of some terms, whose rows run side by side; returns the sum of their metrics.

    In one lane they share a pass, as one over a short row costs little less than one over a long row. In several lanes
    each row has a pass of its own.
    """
    if lanes > 1:
        # The longest begin first, so that in the end no lane waits for long.
        terms = sorted(terms, key=lambda term: -term.tokens)
    runs = [(seed, row, term) for term in terms for seed, row in term.rows]
    groups = [[run] for run in runs] if lanes > 1 else _side_by_side(config, model, runs)
    before = _of_base(model, terms, groups, lanes)

    def forward(group: list[Run]) -> list[Tensor]:
        torch.manual_seed(group[0][0])
        return states_of_rows(model, [row for _, row, _ in group])

    passed = list(in_lanes(forward, groups, lanes))
    # The losses see copies, and what flows back to them goes on through each pass in its own lane.
    states = [state.detach().requires_grad_(state.requires_grad) for group in passed for state in group]
    ready = iter(states)
    owned = [(term, [next(ready) for _ in term.rows]) for term in terms]
    total, metrics = torch.zeros(()), Counter()
    for loss, found in in_lanes(lambda one: one[0].finish(one[1], before.get(one[0])), owned, lanes):
        total = total.to(loss.device) + loss
        metrics.update(found)
    if total.requires_grad:
        upstream = iter(torch.autograd.grad(total, states, materialize_grads=True))
        _add_gradients(model, [(group, [next(upstream) for _ in group]) for group in passed], lanes)
    return dict(metrics)


def _of_base(
    model: PreTrainedModel, terms: Sequence[Term], groups: Sequence[list[Run]], lanes: int
) -> dict[Term, Tensor]:
    """What the base says, for each term that compares.

    Beside other rows bfloat16 rounds a row's states differently, by more than a small step changes them: then the base
    makes the very same pass.
    """
    known: dict[Term, Tensor] = {}
    # Set for all lanes at once: what each of them sets and takes back inside then changes nothing.
    with torch.no_grad(), evaluating(model), adapter_disabled(model):
        for group in groups:
            compared = any(term.kept for *_, term in group)
            if compared and len(group) > 1 and model.dtype != torch.float32:
                states = states_of_rows(model, [row for _, row, _ in group])
                pairs = zip(group, states, strict=True)
                known |= {term: term.renewed(state) for (*_, term), state in pairs if term.renewed}
        alone = [term for term in terms if term.kept and term not in known]
        known |= zip(alone, in_lanes(lambda term: term.kept(), alone, lanes), strict=True)
    return known


def _add_gradients(model: PreTrainedModel, passes: Sequence[tuple[list[Tensor], list[Tensor]]], lanes: int) -> None:
    """Add what flows to the adapter from each pass's states and their gradients, in the passes' order."""
    parameters = list(lora_parameters(model).values())

    def backward(one: tuple[list[Tensor], list[Tensor]]) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(one[0], parameters, one[1], allow_unused=True)

    for gradients in in_lanes(backward, passes, lanes):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def one_by_one(config: Config, model: PreTrainedModel) -> bool:
    """Whether rows run one after another, whatever could run together.

    They do where anything draws chance: each from its own seed, it is then the same wherever, and beside whatever, a
    row runs. With a sharded base, too: processes whose rows have other lengths would else make other passes, and wait
    for one another for good.
    """
    return bool(config.shard or config.lora_dropout or getattr(model, "draws_chance", True))


def _side_by_side(config: Config, model: PreTrainedModel, runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that share a pass: neighbours, together up to twice `row_tokens` tokens.

    Alone run rows that no block mask could hold apart.
    """
    each_alone = one_by_one(config, model)
    groups: list[list[Run]] = []
    room = 0
    for run in runs:
        row = run[1]
        alone = each_alone or not can_pack(model, row)
        if alone or len(row.tokens) > room:
            groups.append([])
            room = 2 * config.row_tokens
        groups[-1].append(run)
        room = 0 if alone else room - len(row.tokens)
    return groups
