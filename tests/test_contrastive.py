"""Plackett–Luce and InfoNCE against decimal arithmetic, torch's own functions, and the laws they obey."""

from decimal import Decimal, localcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sempa.losses import infonce_loss, plackett_luce_loss, positive_first

finite = st.floats(-1e4, 1e4, allow_subnormal=False)
rows = st.lists(finite, min_size=1, max_size=7)
several = st.lists(finite, min_size=2, max_size=7)
moderate = st.lists(st.floats(-30, 30), min_size=2, max_size=7)
temperatures = st.floats(0.01, 100)


def exact_top1(scores, temperature=1.0):
    """−log softmax of the first score, log(1 + Σ_j e^{(s_j − s_0)/τ}), to 50 digits and more."""
    with localcontext() as context:
        context.prec = 100
        others = sum(((Decimal(s) - Decimal(scores[0])) / Decimal(temperature)).exp() for s in scores[1:])
        # log(1 + x) = x to 50 digits where 1 + x would lose them.
        return Decimal(others) if others < Decimal("1e-50") else (1 + others).ln()


def exact_ranking(scores, top=None):
    places = len(scores) if top is None else min(top, len(scores))
    with localcontext() as context:
        context.prec = 100
        return sum((exact_top1(scores[k:]) for k in range(places)), Decimal(0))


def one(scores, dtype=torch.float64):
    return torch.tensor([scores], dtype=dtype)


def gradient(loss, scores):
    scores = one(scores).requires_grad_()
    return torch.autograd.grad(loss(scores).sum(), scores)[0][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(scores=rows)
def test_a_ranking_costs_what_decimal_arithmetic_says(dtype, scores):
    rounded = one(scores, dtype)[0].tolist()
    found = plackett_luce_loss(one(scores, dtype)).item()
    spread = max(rounded) - min(rounded) + len(rounded)
    assert found == pytest.approx(float(exact_ranking(rounded)), abs=4 * len(rounded) * torch.finfo(dtype).eps * spread)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(scores=rows, temperature=temperatures)
def test_infonce_costs_what_decimal_arithmetic_says_even_when_that_is_tiny(dtype, scores, temperature):
    rounded = one(scores, dtype)[0].tolist()
    found = infonce_loss(one(scores, dtype), temperature).item()
    exact = float(exact_top1(rounded, temperature))
    info = torch.finfo(dtype)
    # A relative error in the exponent (s_j − s_0)/τ is an absolute one in its logarithm.
    exponent = (max(rounded) - min(rounded)) / temperature + len(rounded)
    if exact > info.tiny:
        assert found == pytest.approx(exact, rel=4 * info.eps * exponent)
    else:
        assert 0 <= found <= info.tiny


@given(scores=several, top=st.integers(1, 9))
def test_top_counts_the_first_places_only(scores, top):
    expected = float(exact_ranking(scores, top))
    assert plackett_luce_loss(one(scores), top=top).item() == pytest.approx(expected, rel=1e-11, abs=1e-10)


@given(scores=several, random=st.randoms(use_true_random=False))
def test_top_one_and_infonce_do_not_care_how_the_negatives_are_ordered(scores, random):
    rest = scores[1:]
    random.shuffle(rest)
    for loss in (lambda s: plackett_luce_loss(s, top=1), lambda s: infonce_loss(s, 0.7)):
        found, expected = loss(one([scores[0], *rest])), loss(one(scores))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)


@given(scores=moderate, shift=st.floats(-1e4, 1e4))
def test_a_common_offset_changes_nothing(scores, shift):
    moved = [s + shift for s in scores]
    for loss in (plackett_luce_loss, lambda s: infonce_loss(s, 0.5)):
        torch.testing.assert_close(loss(one(moved)), loss(one(scores)), rtol=1e-9, atol=1e-10)


@given(scores=moderate, rise=st.floats(0.01, 10))
def test_raising_the_best_lowers_the_loss_and_raising_the_last_raises_it(scores, rise):
    best, last = [scores[0] + rise, *scores[1:]], [*scores[:-1], scores[-1] + rise]
    for loss in (lambda s: plackett_luce_loss(s).item(), lambda s: infonce_loss(s, 1.0).item()):
        assert loss(one(best)) <= loss(one(scores)) <= loss(one(last))


@given(scores=moderate)
def test_the_gradient_pulls_the_best_up_pushes_the_last_down_and_sums_to_zero(scores):
    for loss in (plackett_luce_loss, lambda s: plackett_luce_loss(s, top=1), lambda s: infonce_loss(s, 0.3)):
        pull = gradient(loss, scores)
        assert pull[0] <= 0 <= pull[-1]
        assert abs(pull.sum().item()) < 1e-12 * len(scores) / 0.3


@given(scores=moderate, data=st.data())
def test_a_masked_candidate_is_as_good_as_absent(scores, data):
    present = data.draw(st.lists(st.booleans(), min_size=len(scores) - 1, max_size=len(scores) - 1))
    mask = torch.tensor([[True, *present]])
    kept = [s for s, there in zip(scores, mask[0].tolist(), strict=True) if there]
    # What stands in a masked place must not matter, whatever it is.
    filled = one(scores).masked_fill(~mask, torch.nan)
    for loss in (
        plackett_luce_loss,
        lambda s, **o: plackett_luce_loss(s, top=2, **o),
        lambda s, **o: infonce_loss(s, 2.0, **o),
    ):
        torch.testing.assert_close(loss(filled, mask=mask), loss(one(kept)), rtol=1e-12, atol=1e-12)
        scored = filled.clone().requires_grad_()
        (pull,) = torch.autograd.grad(loss(scored, mask=mask).sum(), scored)
        assert (pull[~mask] == 0).all()
        torch.testing.assert_close(pull[mask], gradient(loss, kept))


@given(scores=moderate, random=st.randoms(use_true_random=False))
def test_ranks_stand_for_the_order(scores, random):
    ranks = list(range(len(scores)))
    random.shuffle(ranks)
    shuffled = [scores[rank] for rank in ranks]
    found = plackett_luce_loss(one(shuffled), ranks=torch.tensor([ranks], dtype=torch.int32))
    torch.testing.assert_close(found, plackett_luce_loss(one(scores)))


def test_rows_of_a_batch_do_not_meet():
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for loss in (plackett_luce_loss, lambda s: infonce_loss(s, 0.2)):
        torch.testing.assert_close(loss(scores), torch.cat([loss(row[None]) for row in scores]))
        assert loss(scores[:0]).shape == (0,)


@given(scores=moderate)
def test_two_candidates_are_a_logistic_regression(scores):
    margin = one(scores)[:, 0] - one(scores)[:, 1]
    for loss in (plackett_luce_loss, lambda s: infonce_loss(s, 1.0)):
        torch.testing.assert_close(loss(one(scores[:2])), -F.logsigmoid(margin), rtol=1e-12, atol=1e-14)


@given(scores=moderate, temperature=st.floats(0.05, 10))
def test_torchs_cross_entropy_agrees_in_value_and_gradient(scores, temperature):
    def theirs(s):
        return F.cross_entropy(s / temperature, torch.zeros(1, dtype=torch.int64), reduction="none")

    torch.testing.assert_close(infonce_loss(one(scores), temperature), theirs(one(scores)), rtol=1e-12, atol=1e-11)
    ours = gradient(lambda s: infonce_loss(s, temperature), scores)
    torch.testing.assert_close(ours, gradient(theirs, scores), rtol=1e-9, atol=1e-10)


def test_in_batch_negatives_agree_with_torchs_cross_entropy_over_the_similarity_matrix():
    generator = torch.Generator().manual_seed(1)
    similarities = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    expected = F.cross_entropy(similarities / 0.05, torch.arange(6), reduction="none")
    torch.testing.assert_close(infonce_loss(positive_first(similarities), 0.05), expected)
    assert positive_first(torch.arange(6).view(2, 3)).tolist() == [[0, 1, 2], [4, 3, 5]]


@pytest.mark.parametrize(
    "loss",
    [
        plackett_luce_loss,
        lambda s: plackett_luce_loss(s, top=2),
        lambda s: plackett_luce_loss(s, mask=torch.tensor([[True, False, True, True], [True, True, False, False]])),
        lambda s: infonce_loss(s, 0.3),
        lambda s: infonce_loss(s, 0.3, mask=torch.tensor([[True, False, True, True], [True, False, False, False]])),
    ],
)
def test_first_and_second_derivatives_are_those_of_finite_differences(loss):
    scores = torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, scores)
    assert torch.autograd.gradgradcheck(loss, scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_ten_thousand_neither_overflow_nor_lose_their_gradient(dtype):
    scores = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    for loss, wrong in ((lambda s: plackett_luce_loss(s, top=1), 2e4), (lambda s: infonce_loss(s, 0.5), 4e4)):
        values = loss(scores)
        (pull,) = torch.autograd.grad(values.sum(), scores)
        torch.testing.assert_close(values.detach(), torch.tensor([wrong, 0.0], dtype=dtype))
        scale = wrong / 2e4
        torch.testing.assert_close(pull, scale * torch.tensor([[-1, 1, 0], [0, 0, 0]], dtype=dtype))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 700), (torch.float32, 1e38), (torch.float64, 1e308)])
def test_a_margin_that_overflows_has_a_gradient_of_zero(dtype, size):
    scores = torch.tensor([[size, -size, -size], [0, -size, 1]], dtype=dtype, requires_grad=True)
    values = infonce_loss(scores, 0.01)
    (pull,) = torch.autograd.grad(values[0], scores, retain_graph=True)
    assert values[0] == 0 and not pull.any()
    assert torch.autograd.grad(values[1], scores)[0][1].tolist() == pytest.approx([-100, 0, 100])


@pytest.mark.parametrize("size", [1e2, 1e3, 1e4])
def test_equal_candidates_share_a_rankings_gradient_exactly_however_large_the_scores(size):
    scores = torch.tensor([[-1.0, 1.0, 1.0], [1.0, -1.0, -1.0]]) * size
    pulls = []
    for dtype in (torch.float32, torch.float64):
        row = scores.to(dtype).requires_grad_()
        pulls.append(torch.autograd.grad(plackett_luce_loss(row).sum(), row)[0].double())
    torch.testing.assert_close(*pulls, rtol=1e-6, atol=1e-6)


def test_a_lone_candidate_costs_nothing():
    for loss in (plackett_luce_loss, lambda s: infonce_loss(s, 0.1)):
        scores = torch.tensor([[3.0], [-4.0]], requires_grad=True)
        assert loss(scores).tolist() == [0, 0]
        assert torch.autograd.grad(loss(scores).sum(), scores)[0].abs().sum() == 0


LOSSES = [plackett_luce_loss, lambda s, **o: infonce_loss(s, 1.0, **o)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("scores", "mask", "message"),
    [
        (torch.tensor([[0.0, float("nan")]]), None, "found nan in row 0, column 1"),
        (torch.tensor([[0.0, 1.0], [float("-inf"), 0.0]]), None, "found -inf in row 1, column 0"),
        (torch.zeros(2, 0), None, r"at least one candidate, found torch.float32 \(2, 0\)"),
        (torch.zeros(3), None, r"found torch.float32 \(3,\)"),
        (torch.zeros(1, 2, dtype=torch.int64), None, "found torch.int64"),
        (torch.zeros(2, 2), torch.tensor([[True, True], [False, False]]), "all are masked in row 1"),
        (torch.zeros(2, 2), torch.ones(2, 3, dtype=torch.bool), r"shape \(2, 2\), found torch.bool \(2, 3\)"),
        (torch.zeros(2, 2), torch.ones(2, 2), "found torch.float32"),
    ],
)
def test_bad_scores_and_masks_are_refused_with_what_was_found(loss, scores, mask, message):
    with pytest.raises(ValueError, match=message):
        loss(scores, mask=mask)


def test_bad_temperatures_ranks_and_places_are_refused_with_what_was_found():
    scores = torch.zeros(1, 3)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"temperature > 0, found {temperature}"):
            infonce_loss(scores, temperature)
    with pytest.raises(ValueError, match="masked in row 0"):
        infonce_loss(scores, 1.0, mask=torch.tensor([[False, True, True]]))
    with pytest.raises(ValueError, match="top >= 1, found 0"):
        plackett_luce_loss(scores, top=0)
    with pytest.raises(ValueError, match=r"integer ranks of shape \(1, 3\), found torch.int64 \(1, 2\)"):
        plackett_luce_loss(scores, ranks=torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match=r"found torch\.float32"):
        plackett_luce_loss(scores, ranks=torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"candidates >= batch\], found \(3, 2\)"):
        positive_first(torch.zeros(3, 2))


def test_a_tie_is_refused_where_it_counts_and_only_there():
    scores, ranks = torch.zeros(2, 3), torch.tensor([[0, 1, 2], [5, 7, 7]])
    with pytest.raises(ValueError, match="found rank 7 twice in row 1"):
        plackett_luce_loss(scores, ranks=ranks)
    # Who is second and who third does not matter to the choice of the best, nor does an absent candidate's rank.
    plackett_luce_loss(scores, ranks=ranks, top=1)
    plackett_luce_loss(scores, ranks=ranks, mask=torch.tensor([[True] * 3, [True, True, False]]))
    with pytest.raises(ValueError, match="found rank 7 twice in row 1"):
        plackett_luce_loss(scores, ranks=ranks, top=2)
