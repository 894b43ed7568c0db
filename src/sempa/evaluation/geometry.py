"""The geometry of embeddings: how near paraphrases lie, and how evenly all vectors fill their space.

Every measure is a function of float arrays, computed in float64. `all_measures` computes all on unit vectors,
because similarity is the cosine: none of its figures then depends on the vectors' lengths.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from scipy.stats import entropy, skew

from sempa.data.sts import ScoredPair
from sempa.errors import SempaError

NEIGHBOURS = 10
# Rows whose cosines with all others are held at a time.
_BLOCK_ROWS = 1024


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Each row of `[n, D]` divided by its Euclidean length, float64; raises `SempaError` for a zero or NaN row."""
    vectors = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~((lengths > 0) & np.isfinite(lengths)))
    if len(bad):
        raise SempaError(f"vector {bad[0]}: is zero or not finite, so it has no direction")
    return vectors / lengths


def alignment(first: np.ndarray, second: np.ndarray, power: float = 2.0) -> float:
    """ℓ_align = E ‖x − x⁺‖^α over positive pairs, rows of two `[m, D]`; 0 when each pair is one point.

    Wang & Isola 2020 (arXiv 2005.10242), § 4.1; α = `power`.
    """
    return float(np.mean(np.linalg.norm(first - second, axis=1) ** power))


def uniformity(vectors: np.ndarray, t: float = 2.0) -> float:
    """ℓ_uniform = log E e^{−t‖x − y‖²} over the distinct pairs of `[n, D]`; lower is more uniform.

    Wang & Isola 2020 (arXiv 2005.10242), § 4.1. On the unit sphere no distribution comes below the uniform one's
    −2t + log ₀F₁(D/2; t²), about −2t for large D.
    """
    # Row by row: all pairs of a large set at once would take gigabytes.
    rows = [logsumexp(-t * cdist(vectors[i : i + 1], vectors[:i], "sqeuclidean")) for i in range(1, len(vectors))]
    return float(min(0.0, logsumexp(rows) - np.log(len(vectors) * (len(vectors) - 1) / 2)))


def mean_cosine(vectors: np.ndarray) -> float:
    """Mean cosine of the distinct pairs of `[n, D]`: 0 when isotropic, 1 when all point the same way.

    (‖Σ u‖² − n) / (n (n − 1)) for unit vectors u; the anisotropy measure of Ethayarajh 2019 (arXiv 1909.00512), § 3.3.
    """
    units = unit_vectors(vectors)
    total = units.sum(axis=0)
    return float((total @ total - len(units)) / (len(units) * (len(units) - 1)))


def partition_ratio(vectors: np.ndarray) -> float:
    """I(V) = min_c Z(c) / max_c Z(c), Z(c) = Σ e^{c·v} over the rows v of `[n, D]`: 1 when isotropic, near 0 when not.

    c runs over the unit eigenvectors of VᵀV as in Mu & Viswanath 2018 (arXiv 1702.01417), eq. 6, after the partition
    function of Arora et al. 2016 (arXiv 1502.03520). Their signs are arbitrary, so c and −c both count.
    """
    _, axes = np.linalg.eigh(vectors.T @ vectors)
    projections = vectors @ axes
    logs = np.concatenate([logsumexp(signed, axis=0) for signed in (projections, -projections)])
    return float(np.exp(logs.min() - logs.max()))


def isoscore(vectors: np.ndarray) -> float:
    """ι = (r − 1) / (D − 1) with r = (Σ λ)² / Σ λ², λ the eigenvalues of the covariance of `[n, D]`.

    1 when the variance is equal in all directions, 0 when it lies in one; roughly the fraction of dimensions in use.
    IsoScore of Rudman et al. 2022 (arXiv 2108.07344), algorithm 1, whose steps 4 to 7 come to this ratio. It is at most
    (n − 2) / (D − 1) for n ≤ D points.
    """
    covariance = np.cov(vectors.T)
    # Σ λ is the trace, and Σ λ² that of the square: no eigenvalue is needed.
    ratio = np.trace(covariance) ** 2 / np.sum(covariance**2)
    return float((ratio - 1) / (len(covariance) - 1))


def singular_spectrum(vectors: np.ndarray) -> np.ndarray:
    """Singular values of the centred `[n, D]` over √n, falling, `[min(n, D)]`: standard deviation along each axis."""
    return np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False) / np.sqrt(len(vectors))


def effective_rank(singular_values: np.ndarray) -> float:
    """erank = e^{H(p)}, p = σ / Σ σ, H Shannon's entropy: r when r singular values are equal and the others are 0.

    Roy & Vetterli 2007, *The effective rank: A measure of effective dimensionality*, definition 1.
    """
    return float(np.exp(entropy(singular_values)))


def k_occurrences(vectors: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """N_k of each row of `[n, D]`: in how many other rows' k nearest neighbours by cosine it is, int `[n]`.

    The mean is k. With n ≤ k, every row is a neighbour of all others.
    """
    units, nearest = torch.from_numpy(unit_vectors(vectors)), []
    for rows in torch.arange(len(units)).split(_BLOCK_ROWS):
        cosines = units[rows] @ units.T
        # A row is not its own neighbour.
        cosines[torch.arange(len(rows)), rows] = -torch.inf
        # PyTorch's top-k is several times as fast as NumPy's argpartition.
        nearest.append(cosines.topk(min(neighbours, len(units) - 1), sorted=False).indices)
    return torch.cat(nearest).flatten().bincount(minlength=len(units)).numpy()


def hubness(vectors: np.ndarray, neighbours: int = NEIGHBOURS) -> float:
    """Skewness of N_k, E (N − μ)³ / σ³: 0 without hubs, large when a few vectors are everybody's neighbours.

    Radovanović et al. 2010, *Hubs in Space* (JMLR 11), eq. 1, for cosine.
    """
    occurrences = k_occurrences(vectors, neighbours)
    return float(skew(occurrences)) if np.ptp(occurrences) else 0.0


def all_measures(vectors: np.ndarray, positives: np.ndarray) -> dict:
    """All measures of embeddings `[n, D]` scaled to length 1, each under the name of its function, and the `spectrum`.

    `positives` `[m, 2]` are the rows of positive pairs.
    """
    units = unit_vectors(vectors)
    spectrum = singular_spectrum(units)
    return {
        "alignment": alignment(units[positives[:, 0]], units[positives[:, 1]]),
        "uniformity": uniformity(units),
        "mean_cosine": mean_cosine(units),
        "partition_ratio": partition_ratio(units),
        "isoscore": isoscore(units),
        "effective_rank": effective_rank(spectrum),
        "hubness": hubness(units),
        "spectrum": spectrum.tolist(),
    }


def positive_pairs(pairs: Sequence[ScoredPair], sentences: Sequence[str]) -> np.ndarray:
    """Rows in `sentences` of the pairs whose gold score lies in the top fifth of the scores' range, int `[m, 2]`.

    On STS-B these are the scores above 4, the positives of SimCSE's alignment (Gao et al. 2021, arXiv 2104.08821, § 3).
    """
    scores = np.array([pair.score for pair in pairs])
    least = scores.min() + 0.8 * np.ptp(scores)
    row = {sentence: i for i, sentence in enumerate(sentences)}
    return np.array([(row[pair.first], row[pair.second]) for pair in pairs if pair.score > least])
