"""Amortised uncertainty: predict the semantic score of a prompt from its hidden state, without sampling an answer.

Grewal et al. 2024 (arXiv 2410.22685) amortise semantic uncertainty by fine-tuning the language model until its hidden
states give the distribution of an answer's meaning. Here the model stays as it is. With h(x) the last layer's state at
the last token of a prompt, the one that predicts the answer's first token,

    U(x) ≈ b + w · h(x),    (w, b) = argmin Σ_j (U_j − b − w · h(x_j))² + λ ‖w‖²

over prompts x_j whose uncertainty U_j was sampled. This is ridge regression, with λ chosen by leave-one-out error.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from semantic_uncertainty import uncertainties

from sempa import Embedder, SempaError
from sempa.io.files import fingerprint, read_json, write_json
from sempa.model.base import BaseModel, weights_fingerprint
from sempa.model.forward import hidden_states
from sempa.model.lora import adapter_fingerprint
from sempa.model.sampling import encode_prompts

# λ in units of the mean eigenvalue of the centred states' Gram matrix.
_STRENGTHS = np.logspace(-4, 3, 29)
# Embeddings are float32, so scores closer than this differ by rounding alone.
_ROUNDING = 8 * np.finfo(np.float32).eps


@dataclass(frozen=True, eq=False)
class Amortised:
    """A linear map from a prompt's state to its semantic uncertainty: `weights` `[D]` float64 and `bias`.

    It predicts the semantic score of `answers` answers of at most `max_new_tokens` tokens at `temperature`, embedded
    with `readout` at `layer`. `model` is a fingerprint of the model, its precision and its adapter. A prediction may
    fall below 0, the least a sampled score can be.
    """

    weights: np.ndarray
    bias: float
    model: str
    readout: str
    layer: int
    answers: int
    max_new_tokens: int
    temperature: float

    def predict(self, base: BaseModel, prompts: Sequence[str]) -> np.ndarray:
        """The predicted uncertainty of each prompt, float64 `[n]`.

        Raises `SempaError` for another model, precision or adapter than the map was fitted to, and for a prompt that is
        longer than the model can read.
        """
        if _identity(base) != self.model:
            raise SempaError("the map was fitted to another model, precision or adapter, so it has to be fitted anew")
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
    """Sample `n` answers to each prompt and fit the map to their semantic uncertainty.

    Returns the map, the sampled uncertainties `[prompts]`, and each one's prediction by a map fitted to all the others
    `[prompts]`, which says how good the map is. Raises `SempaError` for fewer than four prompts, for uncertainties that
    are all the same, and what `uncertainties` refuses.
    """
    if len(prompts) < 4:
        raise SempaError(f"prompts: found {len(prompts)}, expected at least 4 to fit a map to")
    # Before the answers are sampled, so that a prompt that is too long fails at once.
    states = prompt_states(embedder.base, prompts)
    sampling = {"max_new_tokens": max_new_tokens, "temperature": float(temperature)}
    scores = np.array([found.semantic for found in uncertainties(embedder, prompts, n, **sampling, seed=seed)])
    if np.ptp(scores) < _ROUNDING:
        raise SempaError(
            f"all {len(prompts)} prompts have the same uncertainty, {scores[0]:.4f}, so there is nothing to fit; try a "
            "higher temperature or longer answers"
        )
    weights, bias = ridge(states, scores)
    fitted = Amortised(weights, bias, _identity(embedder.base), embedder.readout, embedder.layer, answers=n, **sampling)
    return fitted, scores, leave_one_out(states, scores)


@torch.inference_mode()
def prompt_states(base: BaseModel, prompts: Sequence[str]) -> np.ndarray:
    """The last layer's state at the last token of each prompt, in the chat template: float32 `[n, D]`."""
    model = base.model.eval()
    states = [
        hidden_states(model, torch.tensor([ids], device=model.device))[0, -1]
        for ids in encode_prompts(base, prompts, 1)
    ]
    return torch.stack(states).float().cpu().numpy()


def ridge(states: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, float]:
    """Ridge regression from states `[n, D]` to scores `[n]`: weights `[D]` and bias, in float64.

    λ is the one, of 29 over seven decades, with the least sum of squared leave-one-out residuals r_j / (1 − S_jj). S is
    the matrix that takes the scores to the fitted ones (Hastie et al., *The Elements of Statistical Learning*, equation
    7.64).
    """
    states, scores = np.asarray(states, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    centre, level = states.mean(0), scores.mean()
    # The dual form: there are fewer prompts than dimensions.
    values, vectors = np.linalg.eigh((states - centre) @ (states - centre).T)
    values = values.clip(min=0)
    # Equal states leave only the mean to predict, whatever λ is.
    unit = values.mean() or 1.0
    turned = vectors.T @ (scores - level)
    least, best = np.inf, np.zeros(len(scores))
    for strength in unit * _STRENGTHS:
        dual = vectors @ (turned / (values + strength))
        leverage = 1 / len(scores) + np.square(vectors) @ (values / (values + strength))
        error = np.square(strength * dual / (1 - leverage)).sum()
        if error < least:
            least, best = error, dual
    weights = (states - centre).T @ best
    return weights, float(level - centre @ weights)


def leave_one_out(states: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each prompt the prediction of a map fitted to all the others, its λ chosen among them: float64 `[n]`.

    The mean of the others is low where the score left out is high, and would alone rank the prompts backwards. The mean
    of all takes its place. A little of the effect stays in the slope: uninformative states give a rank correlation
    slightly below 0 on average.
    """
    scores = np.asarray(scores, dtype=np.float64)
    predicted = []
    for place in range(len(scores)):
        others = np.arange(len(scores)) != place
        weights, bias = ridge(states[others], scores[others])
        predicted.append(bias + states[place].astype(np.float64) @ weights - scores[others].mean() + scores.mean())
    return np.array(predicted)


def save_map(path: Path, fitted: Amortised) -> None:
    """Write the map as JSON, atomically."""
    write_json(path, {**dataclasses.asdict(fitted), "weights": fitted.weights.tolist()})


def load_map(path: Path) -> Amortised:
    """Read a map back; raises `SempaError` for a file that cannot be read or holds something else."""
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
        raise SempaError(f"{path}: is not a fitted map: {error}") from error


def _identity(base: BaseModel) -> str:
    return fingerprint(weights_fingerprint(base), adapter_fingerprint(base.model))
