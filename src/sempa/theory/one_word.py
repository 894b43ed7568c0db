"""A one-word answer: the preference gradient in the PromptEOL state is along u_w − u_l, of two output embeddings."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sempa.kernels import token_logprobs
from sempa.losses import dpo_loss, infonce_loss, positive_first
from sempa.theory.statement import Claim, Measurement, compare, statement, value_and_gradient

_STATES, _WIDTH, _WORDS = 8, 12, 40


@dataclass(frozen=True)
class Answers:
    """Final states h `[n, D]`, output embeddings U `[V, D]`, and for each state a preferred and another word `[n]`.

    `reference` `[n, 2]` holds the reference's log-probabilities of the two words.
    """

    hidden: Tensor
    embeddings: Tensor
    chosen: Tensor
    rejected: Tensor
    reference: Tensor
    beta: float

    @property
    def apart(self) -> Tensor:
        """u_w − u_l, from the other word to the preferred one, `[n, D]`."""
        return self.embeddings[self.chosen] - self.embeddings[self.rejected]

    def condition(self) -> float:
        """2 max Σ_d |h_d u_d| + V + log V: the terms that a logit and its normaliser add up."""
        return float((self.hidden.abs() @ self.embeddings.abs().T).max()) * 2 + math.log(_WORDS) + _WORDS


def draw_answers(generator: torch.Generator) -> Answers:
    """States and embeddings of unit variance, words at random."""
    hidden = torch.randn(_STATES, _WIDTH, generator=generator, dtype=torch.float64)
    embeddings = torch.randn(_WORDS, _WIDTH, generator=generator, dtype=torch.float64)
    words = torch.stack([torch.randperm(_WORDS, generator=generator)[:2] for _ in range(_STATES)])
    reference = torch.randn(_STATES, 2, generator=generator, dtype=torch.float64) - 4
    return Answers(hidden, embeddings, words[:, 0], words[:, 1], reference, beta=0.3)


def _dpo_of_words(answers: Answers, hidden: Tensor, softcap: float | None = None) -> Tensor:
    logprobs = partial(token_logprobs, hidden, answers.embeddings, softcap=softcap)
    return dpo_loss(logprobs(answers.chosen), logprobs(answers.rejected), *answers.reference.T, answers.beta)[0]


@statement(
    name="one-word-is-infonce",
    equation="linear head:  −log π(w|x) = InfoNCE(h, u_w; all u_v),  τ = 1;  ∂/∂h log π = u_w − Σ_v p_v u_v",
    tolerance="64 ε × (2 max Σ_d |h_d u_d| + V + log V), times 2 max |u| for gradients",
    claim=lambda answers, hidden: infonce_loss(_vocabulary_first(answers, hidden, answers.embeddings), 1.0),
    controls={
        "cosine in place of the inner product": lambda answers, hidden: infonce_loss(
            _vocabulary_first(answers, normalize(hidden), normalize(answers.embeddings)), 1.0
        ),
        "τ = 1.01": lambda answers, hidden: infonce_loss(_vocabulary_first(answers, hidden, answers.embeddings), 1.01),
        "only the batch's words as negatives": lambda answers, hidden: infonce_loss(
            positive_first(hidden @ answers.embeddings[answers.chosen].T), 1.0
        ),
    },
)
def one_word_is_infonce(loss_of_scores: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for _ in range(max(1, trials // 8)):
        answers = draw_answers(generator)
        logprob = partial(token_logprobs, weight=answers.embeddings, targets=answers.chosen)
        logprobs, gradient = value_and_gradient(logprob, answers.hidden)
        losses, expected = value_and_gradient(partial(loss_of_scores, answers), answers.hidden)
        width = float(answers.embeddings.abs().max())
        yield compare(-logprobs, losses, answers.condition())
        yield compare(-gradient, expected, answers.condition() * 2 * width)
        yield compare(gradient, _pull(answers), answers.condition() * 2 * width)


def _vocabulary_first(answers: Answers, hidden: Tensor, embeddings: Tensor) -> Tensor:
    """`[n, V]` scores ⟨h, u_v⟩ with the chosen word in column 0."""
    rows = zip(hidden @ embeddings.T, answers.chosen.tolist(), strict=True)
    return torch.stack([torch.cat([row[word : word + 1], row[:word], row[word + 1 :]]) for row, word in rows])


@statement(
    name="one-word-preference-moves-state",
    equation="one-word DPO:  ∂ℓ/∂h = −β σ(−m) (u_w − u_l),  m = β[⟨h, u_w − u_l⟩ − log π_ref(w)/π_ref(l)]",
    tolerance="64 ε × 4 β max |u| × (2 max Σ_d |h_d u_d| + V + log V), times D max |u_w − u_l| for the lead",
    claim=lambda answers: _along(answers, answers.apart),
    controls={
        # As if the pull on the chosen word alone were what is left of it.
        "the normaliser kept": lambda answers: _along(answers, _pull(answers)),
        "a head with soft-capping": lambda answers: value_and_gradient(
            partial(_dpo_of_words, answers, softcap=30.0), answers.hidden
        )[1],
        "reference left out": lambda answers: _along(replace(answers, reference=0 * answers.reference), answers.apart),
    },
)
def one_word_preference_moves_state(direction: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for _ in range(max(1, trials // 8)):
        answers = draw_answers(generator)
        _, gradient = value_and_gradient(partial(_dpo_of_words, answers), answers.hidden)
        condition = answers.condition() * 4 * float(answers.embeddings.abs().max()) * answers.beta
        expected = direction(answers)
        yield compare(gradient, expected, condition)
        # A step against the gradient raises the preferred word's lead by η β σ(−m) ‖u_w − u_l‖².
        leads = ((-slope * answers.apart).sum(1) for slope in (gradient, expected))
        yield compare(*leads, condition * _WIDTH * float(answers.apart.abs().max()))


def _along(answers: Answers, pull: Tensor) -> Tensor:
    """−β σ(−m) times a pull `[n, D]`."""
    lead = (answers.hidden * answers.apart).sum(1) - (answers.reference[:, 0] - answers.reference[:, 1])
    return -answers.beta * torch.sigmoid(-answers.beta * lead)[:, None] * pull


def _pull(answers: Answers) -> Tensor:
    """u_w − Σ_v p_v u_v: towards the word, away from what the model would say, `[n, D]`."""
    probabilities = (answers.hidden @ answers.embeddings.T).softmax(1)
    return answers.embeddings[answers.chosen] - probabilities @ answers.embeddings
