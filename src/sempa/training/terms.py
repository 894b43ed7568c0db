"""How an objective's terms run: packed rows through policy and base, then losses, then the adapter's gradient."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sempa.batching.packing import Row
from sempa.config import Config
from sempa.model.base import can_pack, evaluating, row_states, states_of_rows
from sempa.model.lanes import in_lanes
from sempa.model.lora import adapter_disabled, lora_parameters


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


# A row with its seed and its term.
Run = tuple[int, Row, Term]


def add_terms(config: Config, model: PreTrainedModel, terms: Sequence[Term], lanes: int = 1) -> dict[str, float]:
    """Add the gradient of some terms; returns the sum of their metrics.

    In one lane their rows share passes, as one over a short row costs little less than one over a long row. In several
    lanes each row has a pass of its own.
    """
    if lanes > 1:
        return _add_in_lanes(model, terms, lanes)
    runs = [(seed, row, term) for term in terms for seed, row in term.rows]
    groups = _side_by_side(config, model, runs)
    before = _of_base(model, terms, groups)
    states: list[Tensor] = []
    for group in groups:
        torch.manual_seed(group[0][0])
        states += states_of_rows(model, [row for _, row, _ in group])
    total, metrics, done = torch.zeros(()), Counter(), 0
    for term in terms:
        loss, found = term.finish(states[done : (done := done + len(term.rows))], before.get(term))
        total = total.to(loss.device) + loss
        metrics.update(found)
    if total.requires_grad:
        total.backward()
    return dict(metrics)


def _add_in_lanes(model: PreTrainedModel, terms: Sequence[Term], lanes: int) -> dict[str, float]:
    """The same where each term goes all its way in one lane, as many at a time as there are lanes."""
    # The longest begin first, so that in the end no lane waits for long.
    terms = sorted(terms, key=lambda term: -sum(len(row.tokens) for _, row in term.rows))
    before = _of_base(model, terms, [], lanes)
    parameters, metrics = list(lora_parameters(model).values()), Counter()

    def run(term: Term) -> tuple[Sequence[Tensor | None], dict[str, float]]:
        loss, found = term.finish([row_states(model, row) for _, row in term.rows], before.get(term))
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else []
        return gradients, found

    for gradients, found in in_lanes(run, terms, lanes):
        metrics.update(found)
        # In the terms' order, whichever is ready first: the same bits every time.
        for parameter, gradient in zip(parameters, gradients):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return dict(metrics)


def _of_base(
    model: PreTrainedModel, terms: Sequence[Term], groups: Sequence[list[Run]], lanes: int = 1
) -> dict[Term, Tensor]:
    """What the base says, for each term that compares.

    Beside other rows, in one of `groups`, bfloat16 rounds a row's states differently, by more than a small step changes
    them: then the base makes the very same pass.
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
