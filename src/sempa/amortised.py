"""How unsure a model is, after one pass over the prompt: what sampled answers say, foreseen from the state before them.

Grewal et al. 2024 (arXiv 2410.22685) amortise their semantic-embedding uncertainty, so that no answer need be drawn:
they fine-tune the model until its hidden states give the distribution of an answer's meaning. Here the model stays as
it is. With h(x) the last layer's state at a prompt's last token, which is about to say the answer's first one,

    U(x) ≈ b + w · h(x),    (w, b) = argmin Σ_j (U_j − b − w · h(x_j))² + λ ‖w‖²

over prompts x_j whose uncertainty U_j was sampled (`sempa.semantic_uncertainty`): ridge regression, with the λ that
foresees each of these prompts best from all the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sempa.embedder import Embedder
from sempa.errors import SempaError
from sempa.models import BaseModel
from sempa.readouts import read
from sempa.readouts.prompt import Prompt
from sempa.sampling import encode_prompts
from sempa.semantic_uncertainty import uncertainties
from sempa.tensors import read_tensors, write_tensors

# λ in units of the mean eigenvalue of the centred states' Gram matrix.
_STRENGTHS = np.logspace(-4, 3, 29)
# Whatever is asked here, its state tells one model from another, and a model from itself under an adapter.
_WITNESS = "What do you know?"
# Relative distance of the witness's states: rounding to bfloat16 stays below it.
_SAME = 0.05
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Amortised:
    """The map from a prompt's state to its uncertainty: `weights` `[D]` float64, `bias`, and a `witness` of the model.

    Being linear, it may foresee a value below 0, which says no more than very sure.
    """

    weights: np.ndarray
    bias: float
    witness: np.ndarray

    def __call__(self, base: BaseModel, prompts: Sequence[str]) -> np.ndarray:
        """The uncertainty foreseen for each prompt, float64 `[n]`: one pass of the model, no answer drawn.

        Raises `SempaError` for a model, or an adapter in it, that the map was not fitted to, and an empty prompt.
        """
        states = prompt_states(base, [_WITNESS, *prompts])
        if states.shape[1] != len(self.witness):
            raise SempaError(f"the map is for states of width {len(self.witness)}, the model's have {states.shape[1]}")
        off = np.linalg.norm(states[0] - self.witness) / np.linalg.norm(self.witness)
        if off > _SAME:
            raise SempaError(
                "the map was fitted to another model or adapter: this one's state for a fixed prompt is "
                f"{off:.0%} off, expected at most {_SAME:.0%}"
            )
        return self.bias + states[1:].astype(np.float64) @ self.weights


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

    Returns the map, the sampled uncertainties `[prompts]`, and what the map of all other prompts foresees for each,
    which tells what it is worth. Raises `SempaError` for fewer than four prompts, and what `uncertainties` refuses.
    """
    if len(prompts) < 4:
        raise SempaError(f"prompts: found {len(prompts)}, expected at least 4 to fit a map to")
    found = uncertainties(embedder, prompts, n, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    scores = np.array([one.semantic for one in found])
    states = prompt_states(embedder.base, [_WITNESS, *prompts])
    return Amortised(*ridge(states[1:], scores), states[0]), scores, foreseen(states[1:], scores)


@torch.inference_mode()
def prompt_states(base: BaseModel, prompts: Sequence[str]) -> np.ndarray:
    """The last layer's state that is about to answer each prompt, put through the chat template: float32 `[n, D]`."""
    base.model.eval()
    sequences = [Prompt(list(ids)) for ids in encode_prompts(base, prompts, 1)]
    parts = (read([("last", -1)], base.model, sequences[i : i + _BATCH]) for i in range(0, len(sequences), _BATCH))
    return torch.cat([states for (states,) in parts]).cpu().numpy()


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
    best = np.inf, None
    for strength in unit * _STRENGTHS:
        dual = vectors @ (turned / (values + strength))
        kept = 1 / len(scores) + np.square(vectors) @ (values / (values + strength))
        error = np.square(strength * dual / (1 - kept)).sum()
        if error < best[0]:
            best = error, dual
    weights = (states - centre).T @ best[1]
    return weights, float(level - centre @ weights)


def foreseen(states: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each prompt what the map of all the others foresees, its own λ chosen among them: float64 `[n]`."""
    others = ~np.eye(len(scores), dtype=bool)
    maps = (ridge(states[kept], scores[kept]) for kept in others)
    return np.array([bias + state.astype(np.float64) @ weights for state, (weights, bias) in zip(states, maps)])


def save_amortised(path: Path, fitted: Amortised) -> None:
    """Write the map as safetensors, atomically."""
    parts = {"weights": fitted.weights, "bias": np.array([fitted.bias]), "witness": fitted.witness}
    write_tensors(path, {name: torch.from_numpy(part) for name, part in parts.items()})


def load_amortised(path: Path) -> Amortised:
    """Read a map back; raises `SempaError` for a file that cannot be read, or is something else."""
    tensors = {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
    if {*tensors} != {"weights", "bias", "witness"} or tensors["weights"].shape != tensors["witness"].shape:
        raise SempaError(f"{path}: holds {', '.join(sorted(tensors))}, expected a map that `sempa amortise` wrote")
    return Amortised(tensors["weights"], float(tensors["bias"][0]), tensors["witness"])
