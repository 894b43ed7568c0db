"""How unsure a model is, after one pass over the prompt: what sampled answers say, foreseen from the state before them.

Grewal et al. 2024 (arXiv 2410.22685) amortise their semantic-embedding uncertainty, so that no answer need be drawn:
they fine-tune the model until its hidden states give the distribution of an answer's meaning. Here the model stays as
it is. With h(x) the last layer's state at a prompt's last token, which is about to say the answer's first one,

    U(x) ≈ b + w · h(x),    (w, b) = argmin Σ_j (U_j − b − w · h(x_j))² + λ ‖w‖²

over prompts x_j whose uncertainty U_j was sampled (`sempa.semantic_uncertainty`): ridge regression, with the λ that
foresees each of these prompts best from all the others.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sempa.embedding.embedder import Embedder, token_batches
from sempa.embedding.readouts import read
from sempa.embedding.readouts.prompt import Prompt
from sempa.errors import SempaError
from sempa.io.files import fingerprint, read_json, write_json
from sempa.model.base import BaseModel, weights_fingerprint
from sempa.model.lora import adapter_fingerprint
from sempa.model.sampling import encode_prompts
from sempa.semantic_uncertainty import uncertainties

# λ in units of the mean eigenvalue of the centred states' Gram matrix.
_STRENGTHS = np.logspace(-4, 3, 29)
_BATCH_SIZE = 32


@dataclass(frozen=True, eq=False)
class Amortised:
    """The map from a prompt's state to its uncertainty: `weights` `[D]` float64 and `bias`.

    `model` is a fingerprint of the model, its precision and its adapter. What the map foresees is the semantic score of
    `answers` answers of at most `max_new_tokens` tokens at `temperature`, embedded by `readout` at `layer`. Being
    linear, it may foresee a value below 0, which says no more than very sure.
    """

    weights: np.ndarray
    bias: float
    model: str
    readout: str
    layer: int
    answers: int
    max_new_tokens: int
    temperature: float

    def __call__(self, base: BaseModel, prompts: Sequence[str]) -> np.ndarray:
        """The uncertainty foreseen for each prompt, float64 `[n]`: one pass of the model, no answer drawn.

        Raises `SempaError` for another model, precision or adapter than the map was fitted to, and for a prompt that is
        longer than the model can read.
        """
        if _identity(base) != self.model:
            raise SempaError("the map was fitted to another model, precision or adapter: fit one with `sempa amortise`")
        return self.bias + prompt_states(base, prompts).astype(np.float64) @ self.weights


def amortise(
    embedder: Embedder,
    prompts: Sequence[str],
    n: int = 10,
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
) -> tuple[Amortised, np.ndarray, np.ndarray]:
    """Draw `n` answers to each prompt, and fit the map to how much they disagree.

    Returns the map, the sampled uncertainties `[prompts]`, and what is `foreseen` for each from all the others, which
    tells what the map is worth. Raises `SempaError` for fewer than four prompts, for uncertainties that are all the
    same, and what `uncertainties` refuses.
    """
    if len(prompts) < 4:
        raise SempaError(f"prompts: found {len(prompts)}, expected at least 4 to fit a map to")
    # Before the draws: a prompt or a batch that is too large fails at once.
    states = prompt_states(embedder.base, prompts)
    draws = {"max_new_tokens": max_new_tokens, "temperature": float(temperature)}
    scores = np.array([one.semantic for one in uncertainties(embedder, prompts, n, **draws, seed=seed)])
    if np.ptp(scores) == 0:
        raise SempaError(
            f"the answers to all {len(prompts)} prompts disagree alike, by {scores[0]:.4g}, so there is nothing to "
            "foresee; try a higher temperature or longer answers"
        )
    weights, bias = ridge(states, scores)
    about = (_identity(embedder.base), embedder.readout, embedder.layer, n)
    return Amortised(weights, bias, *about, **draws), scores, foreseen(states, scores)


@torch.inference_mode()
def prompt_states(base: BaseModel, prompts: Sequence[str]) -> np.ndarray:
    """The last layer's state that is about to answer each prompt, put through the chat template: float32 `[n, D]`."""
    base.model.eval()
    sequences = [Prompt(list(ids)) for ids in encode_prompts(base, prompts, 1)]
    states = np.empty((len(sequences), base.model.get_output_embeddings().weight.shape[1]), dtype=np.float32)
    for batch in token_batches([len(one.tokens) for one in sequences], _BATCH_SIZE):
        (found,) = read([("last", -1)], base.model, [sequences[i] for i in batch])
        states[batch] = found.cpu().numpy()
    return states


def ridge(states: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights `[D]` and bias of the map from states `[n, D]` to scores `[n]`, in float64.

    λ is the one, of 29 over seven decades, with the least sum of squared leave-one-out residuals rⱼ / (1 − Sⱼⱼ), S
    being the matrix that takes the scores to the fitted ones (Hastie et al., *The Elements of Statistical Learning*,
    equation 7.64).
    """
    states, scores = np.asarray(states, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    centre, level = states.mean(0), scores.mean()
    # With fewer prompts than dimensions the dual form is the smaller one.
    values, vectors = np.linalg.eigh((states - centre) @ (states - centre).T)
    values = values.clip(min=0)
    # States that are all alike leave no map but the mean, whatever λ is.
    unit = values.mean() or 1.0
    turned = vectors.T @ (scores - level)
    best = np.inf, np.zeros(len(scores))
    for strength in unit * _STRENGTHS:
        dual = vectors @ (turned / (values + strength))
        kept = 1 / len(scores) + np.square(vectors) @ (values / (values + strength))
        error = np.square(strength * dual / (1 - kept)).sum()
        if error < best[0]:
            best = error, dual
    weights = (states - centre).T @ best[1]
    return weights, float(level - centre @ weights)


def foreseen(states: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each prompt what the map of all the others foresees, its own λ chosen among them: float64 `[n]`.

    The others' mean is low where the score left out is high, so that it alone would rank the prompts backwards: the
    mean of all takes its place. A little of that is left, for the slope, too, is fitted without the one it is tried on:
    from states that know nothing it foresees ranks whose ρ is a little below 0 on average.
    """
    scores = np.asarray(scores, dtype=np.float64)
    found = []
    for place in range(len(scores)):
        others = np.arange(len(scores)) != place
        weights, bias = ridge(states[others], scores[others])
        found.append(bias + states[place].astype(np.float64) @ weights - scores[others].mean() + scores.mean())
    return np.array(found)


def save_amortised(path: Path, fitted: Amortised) -> None:
    """Write the map as JSON, atomically."""
    write_json(path, {**dataclasses.asdict(fitted), "weights": fitted.weights.tolist()})


def load_amortised(path: Path) -> Amortised:
    """Read a map back; raises `SempaError` for a file that cannot be read, or is something else."""
    try:
        found = read_json(path)
        kinds = {field.name: field.type for field in dataclasses.fields(Amortised)}
        if not isinstance(found, dict) or {*found} != {*kinds}:
            raise ValueError("it has other fields")
        found["weights"] = np.array(found["weights"], dtype=np.float64)
        if found["weights"].ndim != 1 or not np.isfinite([*found["weights"], found["bias"]]).all():
            raise ValueError("its weights and bias are not finite numbers")
        for name, kind in kinds.items():
            if not isinstance(found[name], kind):
                raise ValueError(f"{name} is {found[name]!r}")
        return Amortised(**found)
    except OSError as error:
        raise SempaError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise SempaError(f"{path}: is not a map that `sempa amortise` wrote: {error}") from error


def _identity(base: BaseModel) -> str:
    return fingerprint(weights_fingerprint(base), adapter_fingerprint(base.model))
