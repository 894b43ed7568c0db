"""Geometry: known limits, invariances, and every measure against a plain double loop or the published algorithm."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from scipy.spatial.distance import cdist
from scipy.special import hyp0f1

from sempa.data.sts import ScoredPair
from sempa.errors import SempaError
from sempa.evaluation import geometry
from sempa.evaluation.geometry import (
    alignment,
    all_measures,
    effective_rank,
    hubness,
    isoscore,
    k_occurrences,
    mean_cosine,
    partition_ratio,
    positive_pairs,
    singular_spectrum,
    uniformity,
    unit_vectors,
)
from sempa.losses import isotropy_loss, uniformity_loss


def gaussian(n, width, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal((n, width))


def skewed(n=60, width=7, seed=1):
    """Correlated, far from the origin, with unequal lengths: nothing is special about it."""
    random = np.random.default_rng(seed)
    return random.standard_normal((n, width)) @ random.standard_normal((width, width)) + random.standard_normal(width)


def rotation(width, seed=2):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0]


class Oracle:
    """The definitions, one pair at a time with Python's own sums."""

    @staticmethod
    def cosine(x, y):
        return math.fsum(a * b for a, b in zip(x, y)) / (math.hypot(*x) * math.hypot(*y))

    @staticmethod
    def pairs(vectors):
        return [(x, y) for i, x in enumerate(vectors) for y in vectors[:i]]

    @classmethod
    def uniformity(cls, vectors, t):
        pairs = cls.pairs(vectors)
        return math.log(math.fsum(math.exp(-t * math.dist(x, y) ** 2) for x, y in pairs) / len(pairs))

    @classmethod
    def mean_cosine(cls, vectors):
        pairs = cls.pairs(vectors)
        return math.fsum(cls.cosine(x, y) for x, y in pairs) / len(pairs)

    @staticmethod
    def partition_ratio(vectors):
        # Right singular vectors instead of eigenvectors.
        axes = np.linalg.svd(vectors, full_matrices=True)[2]
        sums = [math.fsum(math.exp(sign * (v @ axis)) for v in vectors) for axis in axes for sign in (1, -1)]
        return min(sums) / max(sums)

    @staticmethod
    def isoscore(vectors):
        """Algorithm 1 of Rudman et al. 2022, step by step."""
        width = vectors.shape[1]
        rotated = (vectors - vectors.mean(0)) @ np.linalg.eigh(np.cov(vectors.T))[1]
        diagonal = np.diag(np.cov(rotated.T))
        normalised = math.sqrt(width) * diagonal / np.linalg.norm(diagonal)
        defect = np.linalg.norm(normalised - 1) / math.sqrt(2 * (width - math.sqrt(width)))
        share = (width - defect**2 * (width - math.sqrt(width))) ** 2 / width**2
        return (width * share - 1) / (width - 1)

    @classmethod
    def occurrences(cls, vectors, k):
        counts = [0] * len(vectors)
        for i, x in enumerate(vectors):
            others = sorted((j for j in range(len(vectors)) if j != i), key=lambda j: -cls.cosine(x, vectors[j]))
            for j in others[:k]:
                counts[j] += 1
        return counts


MEASURES = {
    "uniformity": lambda v: uniformity(unit_vectors(v)),
    "mean_cosine": mean_cosine,
    "partition_ratio": lambda v: partition_ratio(unit_vectors(v)),
    "isoscore": isoscore,
    "effective_rank": lambda v: effective_rank(singular_spectrum(v)),
    "hubness": lambda v: hubness(v, 5),
    "alignment": lambda v: alignment(v[::2], v[1::2]),
}


def test_uniformity_is_its_definition():
    vectors = unit_vectors(skewed())
    for t in (0.5, 2.0, 9.0):
        assert uniformity(vectors, t) == pytest.approx(Oracle.uniformity(vectors, t), abs=1e-12)


@pytest.mark.parametrize("width", [2, 3, 8, 64, 576])
@pytest.mark.parametrize("t", [1.0, 2.0])
def test_uniform_points_on_the_sphere_have_the_closed_form(width, t):
    points = unit_vectors(gaussian(3000, width, seed=width))
    # The cosine u of two uniform points has density ∝ (1 − u²)^{(D − 3)/2}; u = cos a keeps D = 2 finite.
    density = quad(lambda a: math.sin(a) ** (width - 2), 0, math.pi)[0]
    mean = quad(lambda a: math.exp(-2 * t * (1 - math.cos(a))) * math.sin(a) ** (width - 2), 0, math.pi)[0] / density
    expected = math.log(mean)
    assert expected == pytest.approx(math.log(hyp0f1(width / 2, t**2)) - 2 * t, abs=1e-7)
    # Standard error of the log of a mean over pairs, from the spread of independent pairs (halves of the sample).
    kernel = np.exp(-t * np.sum((points[::2] - points[1::2]) ** 2, axis=1))
    tolerance = 5 * kernel.std() / kernel.mean() / math.sqrt(len(points))
    assert uniformity(points, t) == pytest.approx(expected, abs=tolerance)
    assert tolerance < 0.2


def test_uniformity_of_distant_and_of_equal_points_does_not_leave_the_range_of_floats():
    assert uniformity(np.array([[0.0, 0.0], [3e4, 4e4]])) == pytest.approx(-2 * 2.5e9)
    assert uniformity(np.ones((5, 3))) == 0
    # Squared lengths of 1e21 leave distances that are pure rounding, of either sign.
    assert uniformity(np.tile(gaussian(1, 33, seed=3, scale=1e10), (50, 1))) <= 0
    assert uniformity(np.array([[1.0, 0.0], [-1.0, 0.0]]), 3.0) == -12


def test_uniformity_holds_no_more_than_a_row_of_distances(monkeypatch):
    blocks = []
    monkeypatch.setattr(geometry, "cdist", lambda *given: blocks.append(cdist(*given)) or blocks[-1])
    uniformity(gaussian(50, 3))
    assert sum(block.size for block in blocks) == 50 * 49 / 2
    assert max(block.size for block in blocks) == 49


def test_alignment_is_the_mean_power_of_distances():
    first, second = gaussian(20, 5), gaussian(20, 5, seed=1)
    for power in (1, 2, 3.5):
        expected = math.fsum(math.dist(x, y) ** power for x, y in zip(first, second)) / 20
        assert alignment(first, second, power) == pytest.approx(expected, rel=1e-12)
    assert alignment(first, first) == 0
    antipodal = unit_vectors(first)
    assert alignment(antipodal, -antipodal) == pytest.approx(4)


def test_mean_cosine_partition_ratio_and_isoscore_are_their_definitions():
    for n, width in ((60, 7), (40, 3)):
        vectors = skewed(n, width)
        assert mean_cosine(vectors) == pytest.approx(Oracle.mean_cosine(vectors), abs=1e-12)
        assert isoscore(vectors) == pytest.approx(Oracle.isoscore(vectors), rel=1e-10)
        assert partition_ratio(vectors) == pytest.approx(Oracle.partition_ratio(vectors), rel=1e-10)


def test_fewer_points_than_dimensions_have_the_same_score():
    vectors = skewed(5, 12)
    assert isoscore(vectors) == pytest.approx(Oracle.isoscore(vectors), rel=1e-10)
    assert isoscore(gaussian(4, 50)) <= 2 / 49
    simplex = np.eye(4, 50)
    assert isoscore(simplex) == pytest.approx(2 / 49)


def test_isoscore_is_one_for_identity_covariance_and_zero_for_one_direction():
    width = 6
    cross = np.concatenate([np.eye(width), -np.eye(width)])
    assert isoscore(cross + 3) == pytest.approx(1, abs=1e-12)
    line = np.outer(np.linspace(-1, 2, 30), gaussian(1, width)[0])
    assert isoscore(line) == pytest.approx(0, abs=1e-12)
    # k equal variances of D: (k − 1)/(D − 1).
    half = cross * (np.arange(width) < 3)
    assert isoscore(half) == pytest.approx(2 / 5, abs=1e-12)


def test_an_isotropic_gaussian_is_isotropic_by_every_measure():
    n, width = 4000, 16
    vectors = gaussian(n, width)
    assert abs(mean_cosine(vectors)) < 5 / n
    assert isoscore(vectors) == pytest.approx(1, abs=0.01)
    assert partition_ratio(unit_vectors(vectors)) > 0.95
    assert effective_rank(singular_spectrum(vectors)) == pytest.approx(width, rel=0.001)
    assert isoscore(skewed(n, width)) < 0.7


def test_rank_one_orthonormal_and_antipodal_points_have_their_known_figures():
    direction = gaussian(1, 8)[0]
    line = np.outer([1.0, 2.0, 3.0, 7.0], direction)
    assert mean_cosine(line) == pytest.approx(1)
    assert effective_rank(singular_spectrum(line)) == pytest.approx(1, abs=1e-6)
    assert uniformity(unit_vectors(line)) == pytest.approx(0, abs=1e-12)

    width = 9
    basis = np.eye(width)
    assert mean_cosine(basis) == 0
    assert uniformity(basis) == pytest.approx(-4)
    assert partition_ratio(basis) == pytest.approx((math.exp(-1) + width - 1) / (math.e + width - 1))
    # Centring takes one of the nine equal directions away.
    assert effective_rank(singular_spectrum(basis)) == pytest.approx(width - 1)
    assert isoscore(basis) == pytest.approx((width - 2) / (width - 1))

    poles = np.concatenate([basis, -basis])
    assert mean_cosine(poles) == pytest.approx(-1 / (2 * width - 1))
    assert partition_ratio(poles) == pytest.approx(1)
    assert effective_rank(singular_spectrum(poles)) == pytest.approx(width)
    expected = (width * math.exp(-8) + 2 * width * (width - 1) * math.exp(-4)) / (width * (2 * width - 1))
    assert uniformity(poles) == pytest.approx(math.log(expected))


def test_the_partition_ratio_of_long_vectors_does_not_overflow():
    assert partition_ratio(np.array([[3e3, 0.0], [0.0, 1.0]])) == 0
    vectors = np.array([[900.0, 0.0], [-900.0, 0.0], [0.0, 899.0], [0.0, -899.0]])
    assert partition_ratio(vectors) == pytest.approx(math.exp(-1), rel=1e-9)


def test_the_singular_spectrum_is_the_deviation_along_the_principal_axes():
    vectors = skewed()
    values = singular_spectrum(vectors)
    variances = np.linalg.eigvalsh(np.cov(vectors.T, bias=True))[::-1]
    np.testing.assert_allclose(values, np.sqrt(variances), rtol=1e-9)
    p = values / values.sum()
    assert effective_rank(values) == pytest.approx(math.exp(-math.fsum(x * math.log(x) for x in p)), rel=1e-12)
    assert effective_rank(np.array([3.0, 3.0, 0.0, 3.0])) == pytest.approx(3, rel=1e-15)


def test_k_occurrences_and_hubness_are_their_definitions(monkeypatch):
    vectors = skewed(50)
    for k in (1, 5, 10):
        expected = Oracle.occurrences(vectors, k)
        for rows in (geometry._BLOCK_ROWS, 7):
            monkeypatch.setattr(geometry, "_BLOCK_ROWS", rows)
            assert k_occurrences(vectors, k).tolist() == expected
        deviations = np.array(expected) - k
        assert np.mean(expected) == k
        assert hubness(vectors, k) == pytest.approx(np.mean(deviations**3) / np.mean(deviations**2) ** 1.5, rel=1e-12)


def test_points_around_one_centre_make_it_a_hub_and_a_ring_makes_none():
    angles = 2 * np.pi * np.arange(40) / 40 + 1e-4 * np.random.default_rng(0).standard_normal(40)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert abs(hubness(ring, 2)) < 1
    spokes = np.concatenate([np.eye(30), np.ones((1, 30))])
    assert k_occurrences(spokes, 1)[-1] == 30
    assert hubness(spokes, 1) > 5
    assert hubness(ring[:5], 10) == 0


def test_no_row_counts_among_its_own_neighbours_however_many_equal_it():
    vectors = np.concatenate([np.ones((20, 3)), skewed(30)[:, :3]])
    counts = k_occurrences(vectors, 4)
    assert counts.min() >= 0
    assert counts.mean() == 4
    assert k_occurrences(np.ones((8, 3)), 7).tolist() == [7] * 8


@pytest.mark.parametrize("name", MEASURES)
def test_a_rotation_and_a_permutation_change_nothing(name):
    vectors = skewed()
    value = MEASURES[name](vectors)
    assert math.isfinite(value)
    assert MEASURES[name](vectors @ rotation(7)) == pytest.approx(value, rel=1e-9)
    if name != "alignment":
        assert MEASURES[name](np.random.default_rng(0).permutation(vectors)) == pytest.approx(value, rel=1e-9)
    assert MEASURES[name](vectors + gaussian(60, 7, scale=0.1)) != pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("factor", [1e-30, 0.3, 1e30])
def test_lengths_do_not_matter_where_only_directions_count(factor):
    vectors = skewed()
    uneven = vectors * factor * np.random.default_rng(0).uniform(0.01, 100, (60, 1))
    np.testing.assert_allclose(unit_vectors(uneven), unit_vectors(vectors), rtol=1e-12)
    assert mean_cosine(uneven) == pytest.approx(mean_cosine(vectors), rel=1e-12)
    assert hubness(uneven) == hubness(vectors)
    assert isoscore(factor * vectors) == pytest.approx(isoscore(vectors), rel=1e-12)
    ranks = [effective_rank(singular_spectrum(v)) for v in (vectors, factor * vectors)]
    assert ranks[0] == pytest.approx(ranks[1], rel=1e-12)
    assert isoscore(uneven) != pytest.approx(isoscore(vectors), rel=0.01)


def test_a_shift_changes_neither_isoscore_nor_spectrum_but_the_mean_cosine():
    vectors = skewed()
    moved = vectors + 50
    assert isoscore(moved) == pytest.approx(isoscore(vectors), rel=1e-9)
    np.testing.assert_allclose(singular_spectrum(moved), singular_spectrum(vectors), rtol=1e-8)
    assert mean_cosine(moved) > mean_cosine(vectors) + 0.1


def test_all_measures_are_taken_of_unit_vectors():
    vectors = skewed()
    positives = np.array([[0, 1], [2, 3], [0, 5]])
    found = all_measures(vectors.astype(np.float32), positives)
    units = unit_vectors(vectors.astype(np.float32))
    spectrum = found.pop("spectrum")
    np.testing.assert_allclose(spectrum, np.sqrt(np.linalg.eigvalsh(np.cov(units.T, bias=True))[::-1]), rtol=1e-8)
    p = np.array(spectrum) / sum(spectrum)
    expected = {
        "alignment": np.mean([math.dist(units[i], units[j]) ** 2 for i, j in positives]),
        "uniformity": Oracle.uniformity(units, 2),
        "mean_cosine": Oracle.mean_cosine(units),
        "partition_ratio": Oracle.partition_ratio(units),
        "isoscore": Oracle.isoscore(units),
        "effective_rank": math.exp(stats.entropy(p)),
        "hubness": stats.skew(Oracle.occurrences(units, 10)),
    }
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_measures_say_what_the_losses_of_the_same_names_train():
    vectors = skewed()
    units, tensor = unit_vectors(vectors), torch.from_numpy(vectors)
    assert uniformity(units, 3.0) == pytest.approx(float(uniformity_loss(tensor, 3.0)), abs=1e-12)
    in_use = 7 / math.exp(float(isotropy_loss(tensor)))
    assert isoscore(units) == pytest.approx((in_use - 1) / 6, rel=1e-12)


def test_positives_are_the_pairs_above_four_on_a_scale_from_0_to_5():
    pairs = [ScoredPair("a", "b", s) for s in (0, 2.5, 4.0, 5)] + [
        ScoredPair("c", "a", 4.2),
        ScoredPair("b", "b", 4.01),
    ]
    assert positive_pairs(pairs, ["c", "b", "a"]).tolist() == [[2, 1], [0, 2], [1, 1]]


def test_a_vector_without_a_direction_is_told_in_a_sentence():
    with pytest.raises(SempaError, match="vector 1: is zero or not finite"):
        unit_vectors(np.array([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(SempaError, match="vector 0: is zero or not finite"):
        mean_cosine(np.array([[math.nan, 2.0], [1.0, 0.0]]))


def test_positives_lie_in_the_top_fifth_of_any_scale():
    pairs = [ScoredPair("a", name, score) for name, score in (("b", 1), ("c", 4.1), ("d", 4.3), ("e", 5))]
    assert positive_pairs(pairs, ["a", "b", "c", "d", "e"]).tolist() == [[0, 3], [0, 4]]
