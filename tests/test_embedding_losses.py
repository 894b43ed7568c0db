"""Losses of embeddings against torch's own functions, plain loops and the measures of the geometry."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import points
from hypothesis import given
from hypothesis import strategies as st

from sempa.evaluation.geometry import isoscore, uniformity, unit_vectors
from sempa.losses import (
    all_pairs_infonce_loss,
    embedding_infonce_loss,
    infonce_loss,
    isotropy_loss,
    spod_loss,
    uniformity_loss,
)


@pytest.mark.parametrize("hard", [None, 0, 1, 3])
def test_embedding_infonce_is_torchs_cross_entropy_over_all_cosines(hard):
    anchors, positives = points(5, 8, seed=1), points(5, 8, seed=2)
    negatives = None if hard is None else points(5, hard, 8, seed=3)
    candidates = positives if hard is None else torch.cat([positives, negatives.reshape(-1, 8)])
    cosines = F.cosine_similarity(anchors[:, None], candidates[None], dim=-1)
    expected = F.cross_entropy(cosines / 0.05, torch.arange(5), reduction="none")
    torch.testing.assert_close(embedding_infonce_loss(anchors, positives, negatives), expected, rtol=1e-10, atol=1e-13)
    if hard == 1:
        flat = embedding_infonce_loss(anchors, positives, negatives[:, 0])
        torch.testing.assert_close(flat, expected, rtol=1e-10, atol=1e-13)


def test_embedding_infonce_without_company_is_infonce_on_three_cosines():
    x, near, far = points(3, 6)
    cosines = torch.stack([torch.cosine_similarity(x, y, dim=0) for y in (near, far)])
    torch.testing.assert_close(
        embedding_infonce_loss(x[None], near[None], far[None], 0.3), infonce_loss(cosines[None], 0.3)
    )
    # Alone and without a hard negative there is nothing to tell apart.
    assert embedding_infonce_loss(x[None], near[None]).item() == 0


def test_the_hard_negatives_of_others_count_too():
    anchors, positives, negatives = points(3, 4, 6)
    # Row 1's contradiction is row 0's anchor: both rows suffer.
    negatives[1] = anchors[0]
    before = embedding_infonce_loss(anchors, positives, points(4, 6, seed=9))
    after = embedding_infonce_loss(anchors, positives, negatives)
    assert after[0] > before[0] + 1


def all_pairs_by_hand(anchors, positives, negatives, temperature, same=()):
    """Text by text, in plain loops; `same` are pairs of positions that hold one text."""
    n, texts = len(anchors), [*anchors, *positives, *negatives]
    alike = {(i, i) for i in range(len(texts))} | {*same} | {(j, i) for i, j in same}

    def pick(query, answer):
        scores = {
            other: torch.cosine_similarity(texts[query], texts[other], dim=0) / temperature
            for other in range(len(texts))
            if other == answer or not {(query, other), (answer, other)} & alike
        }
        return torch.logsumexp(torch.stack([*scores.values()]), 0) - scores[answer]

    return torch.stack([(pick(i, n + i) + pick(n + i, i)) / 2 for i in range(n)])


def test_all_pairs_infonce_is_the_sum_over_all_other_texts_both_ways():
    three = points(3, 5, 8)
    torch.testing.assert_close(all_pairs_infonce_loss(*three), all_pairs_by_hand(*three, 0.05), rtol=1e-10, atol=1e-12)
    # Seen from the anchors and without the other anchors it is the one-sided loss.
    one = points(3, 1, 8)
    both = [embedding_infonce_loss(one[i], one[1 - i], one[2], 0.3) for i in range(2)]
    torch.testing.assert_close(all_pairs_infonce_loss(*one, 0.3), sum(both) / 2)


def test_a_text_that_comes_twice_is_no_negative_of_itself():
    anchors, positives, negatives = points(3, 4, 6)
    anchors[2], positives[3], negatives[1] = anchors[0], positives[0], positives[2]
    # One is its own paraphrase, and keeps its positive.
    positives[1] = anchors[1]
    texts = torch.tensor([0, 1, 0, 3, 4, 1, 6, 4, 8, 6, 10, 11])
    three = (anchors, positives, negatives)
    found = all_pairs_infonce_loss(*three, 0.1, texts)
    same = [(0, 2), (4, 7), (6, 9), (1, 5)]
    torch.testing.assert_close(found, all_pairs_by_hand(*three, 0.1, same), rtol=1e-10, atol=1e-12)
    assert all_pairs_infonce_loss(*three, 0.1).sum() > found.sum() + 1


@pytest.mark.parametrize("loss", [uniformity_loss, isotropy_loss, lambda x: embedding_infonce_loss(x, x.flip(0))])
def test_only_directions_count_and_embeddings_of_bfloat16_are_computed_in_float32(loss):
    embeddings = points(6, 16)
    lengths = torch.tensor([1e-3, 1.0, 7.0, 1e4, 2.0, 0.5], dtype=torch.float64)[:, None]
    torch.testing.assert_close(loss(embeddings * lengths), loss(embeddings), rtol=1e-9, atol=1e-12)
    half = embeddings.bfloat16()
    assert loss(half).dtype == torch.float32
    torch.testing.assert_close(loss(half).double(), loss(half.double()), rtol=1e-5, atol=1e-6)
    half.requires_grad_()
    assert torch.autograd.grad(loss(half).sum(), half)[0].isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [
        uniformity_loss,
        isotropy_loss,
        lambda x: isotropy_loss(x.T),
        lambda x: embedding_infonce_loss(x, x.flip(0) + 0.3 * x, x.roll(1, 0)),
        lambda x: all_pairs_infonce_loss(x, x.flip(0) + 0.3 * x, x.roll(1, 0)),
        lambda x: torch.cat(spod_loss(x, points(40, 16).float(), 4)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_reach_the_losses_of_embeddings(loss, dtype):
    found = []
    for enabled in (False, True):
        embeddings = points(6, 16).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            values = loss(embeddings)
        found.append([values, *torch.autograd.grad(values.sum(), embeddings)])
    for plain, cast in zip(*found, strict=True):
        assert torch.equal(plain, cast)


@pytest.mark.parametrize(
    "loss",
    [
        uniformity_loss,
        isotropy_loss,
        lambda x: isotropy_loss(x.T),
        lambda x: embedding_infonce_loss(x, x.flip(0) + 0.3 * x, x.roll(1, 0), 0.4),
        lambda x: embedding_infonce_loss(x, x.roll(1, 1), torch.stack([x.flip(0), x.flip(1)], 1), 0.4),
        lambda x: all_pairs_infonce_loss(x, x.flip(0) + 0.3 * x, x.roll(1, 0), 0.4, torch.arange(15) % 13),
    ],
)
def test_embedding_losses_derivatives_are_those_of_finite_differences(loss):
    embeddings = points(5, 7).requires_grad_()
    assert torch.autograd.gradcheck(loss, embeddings)
    assert torch.autograd.gradgradcheck(loss, embeddings)


@given(size=st.integers(2, 40), width=st.integers(2, 20), t=st.floats(0.1, 20), seed=st.integers(0, 999))
def test_uniformity_is_the_measured_one(size, width, t, seed):
    embeddings = points(size, width, seed=seed)
    expected = uniformity(unit_vectors(embeddings.numpy()), t)
    assert uniformity_loss(embeddings, t).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_uniformity_of_one_point_of_two_poles_and_of_a_cross():
    pole = torch.tensor([[0.0, 3.0]], dtype=torch.float64)
    assert uniformity_loss(pole.expand(4, 2)).item() == pytest.approx(0, abs=1e-14)
    assert uniformity_loss(torch.cat([pole, -pole])).item() == pytest.approx(-8)
    # Six pairs: four at ‖x − y‖² = 2, two at 4.
    cross = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    expected = math.log((4 * math.exp(-2 * 2) + 2 * math.exp(-2 * 4)) / 6)
    assert uniformity_loss(cross).item() == pytest.approx(expected, rel=1e-6)


def test_equal_embeddings_have_a_uniformity_gradient_without_nan():
    same = torch.ones(3, 4, requires_grad=True)
    (pull,) = torch.autograd.grad(uniformity_loss(same), same)
    torch.testing.assert_close(pull, torch.zeros(3, 4), atol=1e-6, rtol=0)


@given(size=st.integers(3, 40), width=st.integers(2, 20), seed=st.integers(0, 999))
def test_isotropy_is_what_the_measured_isoscore_says(size, width, seed):
    embeddings = points(size, width, seed=seed)
    ratio = 1 + (width - 1) * isoscore(unit_vectors(embeddings.numpy()))
    expected = math.log(min(width, size - 1) / ratio)
    assert isotropy_loss(embeddings).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_isotropy_is_that_of_the_eigenvalues_nothing_when_they_are_equal_and_log_d_when_one_has_it_all():
    # A simplex in 7 dimensions: 7 equal eigenvalues, in any orthogonal frame and any larger space.
    frame = torch.linalg.qr(points(12, 12)).Q[:8]
    assert isotropy_loss(frame).item() == pytest.approx(0, abs=1e-13)
    # Both poles on one axis: one eigenvalue out of min(D, n − 1) = 4.
    axis = torch.tensor([1.0, -1, 1, -1, 1, 1], dtype=torch.float64)[:, None] * points(1, 4)
    assert isotropy_loss(axis).item() == pytest.approx(math.log(4))
    for shape in ((9, 5), (5, 9)):
        unit = F.normalize(points(*shape), dim=1)
        eigenvalues = torch.linalg.eigvalsh(torch.cov(unit.T))
        expected = math.log(min(5, shape[0] - 1)) + (eigenvalues.square().sum() / eigenvalues.sum() ** 2).log()
        torch.testing.assert_close(isotropy_loss(unit), expected)


@pytest.mark.parametrize("size", [3, 8, 100])
@pytest.mark.parametrize("width", [4, 17, 576])
def test_isotropy_refuses_one_direction_whatever_its_rounding_and_takes_two_that_barely_differ(size, width):
    same = points(1, width).float().repeat(size, 1)
    with pytest.raises(ValueError, match="embeddings that differ"):
        isotropy_loss(same)
    same[0, 0] += 1e-2
    assert isotropy_loss(same).isfinite()


@pytest.mark.parametrize("loss", [uniformity_loss, isotropy_loss])
def test_a_few_steps_against_the_regularisers_spread_a_narrow_cone(loss):
    embeddings = (
        torch.tensor([5.0] + [0.0] * 15) + points(24, 16, dtype=torch.float32) * torch.logspace(-3, 0, 16)
    ).requires_grad_()
    before = loss(embeddings).item()
    optimizer = torch.optim.SGD([embeddings], lr=5.0)
    for _ in range(50):
        optimizer.zero_grad()
        loss(embeddings).backward()
        optimizer.step()
    assert loss(embeddings).item() < before - 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: uniformity_loss(x[:1]), "at least 2 embeddings and t > 0, found 1 and 2.0"),
        (lambda x: uniformity_loss(x, 0.0), "found 4 and 0.0"),
        (lambda x: uniformity_loss(x, math.inf), "found 4 and inf"),
        (lambda x: uniformity_loss(x[0]), r"floating embeddings \[n, D\], found torch.float32 \(3,\)"),
        (lambda x: uniformity_loss(x.long()), "found torch.int64"),
        (lambda x: uniformity_loss(x * torch.tensor([1.0, 0, 1, 1])[:, None]), "found one of length 0 in row 1"),
        (lambda x: isotropy_loss(x[:2]), "at least 3 embeddings, found 2"),
        (lambda x: isotropy_loss(torch.ones(4, 4)), "embeddings that differ, found 4 of one direction"),
        (lambda x: isotropy_loss(x / 0), "found one of length inf in row 0"),
        (lambda x: embedding_infonce_loss(x, x[:3]), r"found \(4, 3\) and \(3, 3\)"),
        (lambda x: embedding_infonce_loss(x, x, x[:3]), r"found \(4, 3\) and \(4, 3\) and \(3, 3\)"),
        (lambda x: embedding_infonce_loss(x, x, x[:, :2]), r"and \(4, 2\)"),
        (lambda x: embedding_infonce_loss(x, x, x[None, None]), r"and \(1, 1, 4, 3\)"),
        (lambda x: embedding_infonce_loss(x, 0 * x), "positives with a direction, found one of length 0 in row 0"),
        (lambda x: embedding_infonce_loss(x, x, x * float("nan")), "hard negatives with a direction"),
        (lambda x: embedding_infonce_loss(x, x, temperature=0.0), "temperature > 0, found 0.0"),
        (lambda x: all_pairs_infonce_loss(x, x, x[:3]), r"found \(4, 3\) and \(4, 3\) and \(3, 3\)"),
        (lambda x: all_pairs_infonce_loss(x, x, x, 1.0, torch.arange(4)), r"texts \[3n\], found .* and \(4,\)"),
        (lambda x: all_pairs_infonce_loss(x, 0 * x, x), "positives with a direction, found one of length 0 in row 0"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused_with_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call(points(4, 3, dtype=torch.float32) + 5)
