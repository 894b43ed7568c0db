"""The further objectives against closed forms, torch's own functions, TRL, and the measures of the geometry."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sempa.batching.packing import pack_preferences
from sempa.batching.prompts import Preference
from sempa.evaluation.geometry import isoscore, uniformity, unit_vectors
from sempa.losses import (
    all_pairs_infonce_loss,
    ches_score,
    conservative_dpo_loss,
    dpo_loss,
    embedding_infonce_loss,
    infonce_loss,
    ipo_loss,
    isotropy_loss,
    spod_loss,
    uniformity_loss,
)
from sempa.model.forward import hidden_states

logps = st.lists(st.floats(-500, 0), min_size=4, max_size=4)
betas = st.floats(0.01, 2)
# A loss of log-probabilities with its further arguments filled in.
PAIRED = [ipo_loss, lambda *t: conservative_dpo_loss(*t, 0.2)]


def tensors(values):
    return [torch.tensor([v], dtype=torch.float64) for v in values]


def points(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# Log-ratios


@given(values=logps, beta=betas)
def test_ipo_is_the_squared_distance_of_the_margin_from_one_over_two_beta(values, beta):
    pc, pr, rc, rr = values
    margin = (pc - rc) - (pr - rr)
    policy = [t.requires_grad_() for t in tensors(values[:2])]
    losses, chosen, rejected = ipo_loss(*policy, *tensors(values[2:]), beta)
    losses.sum().backward()
    assert losses.item() == pytest.approx((margin - 0.5 / beta) ** 2, rel=1e-12, abs=1e-20)
    assert policy[0].grad.item() == pytest.approx(2 * margin - 1 / beta, rel=1e-9, abs=1e-10)
    assert policy[1].grad.item() == -policy[0].grad.item()
    assert chosen.item() == pytest.approx(beta * (pc - rc))
    assert rejected.item() == pytest.approx(beta * (pr - rr))


@given(values=logps, beta=betas, label_smoothing=st.floats(0, 0.49))
def test_conservative_dpo_is_torchs_cross_entropy_with_a_soft_label(values, beta, label_smoothing):
    pc, pr, rc, rr = values
    margin = beta * torch.tensor([(pc - rc) - (pr - rr)], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([1 - label_smoothing], dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(margin, label, reduction="none")
    (slope,) = torch.autograd.grad(expected, margin)
    policy = [t.requires_grad_() for t in tensors(values[:2])]
    losses, chosen, rejected = conservative_dpo_loss(*policy, *tensors(values[2:]), beta, label_smoothing)
    losses.sum().backward()
    # Torch's form subtracts a product of the margin's size.
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12 * (1 + abs(margin.item())))
    torch.testing.assert_close(policy[0].grad, beta * slope, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(policy[1].grad, -beta * slope, rtol=1e-9, atol=1e-14)
    assert (chosen - rejected).item() == pytest.approx(margin.item(), abs=1e-9)


@given(values=logps, beta=betas)
def test_conservative_dpo_without_smoothing_is_dpo(values, beta):
    for ours, plain in zip(
        conservative_dpo_loss(*tensors(values), beta, 0.0), dpo_loss(*tensors(values), beta), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0)


@pytest.mark.parametrize("label_smoothing", [0.05, 0.3])
def test_conservative_dpo_is_least_where_the_policy_believes_the_label_as_often_as_it_is_right(label_smoothing):
    zero = torch.zeros(3, dtype=torch.float64)
    best = math.log((1 - label_smoothing) / label_smoothing) / 0.1
    policy = torch.tensor([best - 1, best, best + 1], dtype=torch.float64, requires_grad=True)
    losses, *_ = conservative_dpo_loss(policy, zero, zero, zero, 0.1, label_smoothing)
    (slope,) = torch.autograd.grad(losses.sum(), policy)
    assert slope[0] < -1e-6 < abs(slope[1]) < 1e-12 < slope[2]


@pytest.mark.parametrize("loss", PAIRED)
@given(values=logps, shift=st.floats(-50, 50))
def test_a_term_of_the_prompt_alone_cancels(loss, values, shift):
    pc, pr, rc, rr = values
    plain = loss(*tensors(values), 0.1)[0]
    torch.testing.assert_close(loss(*tensors((pc + shift, pr + shift, rc, rr)), 0.1)[0], plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", PAIRED)
def test_derivatives_are_those_of_finite_differences_and_rewards_carry_none(loss):
    policy = [points(4, seed=s).requires_grad_() for s in (1, 2)]
    reference = [points(4, seed=s) for s in (3, 4)]
    assert torch.autograd.gradcheck(lambda c, r: loss(c, r, *reference, 0.5)[0], policy)
    assert not any(reward.requires_grad for reward in loss(*policy, *reference, 0.5)[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_margins_neither_overflow_nor_lose_their_gradient(dtype):
    policy = torch.tensor([-1e4, 1e4], dtype=dtype, requires_grad=True)
    zero = torch.zeros(2, dtype=dtype)
    for loss, values, slopes in (
        (PAIRED[0], [(1e4 + 0.5) ** 2, (1e4 - 0.5) ** 2], [-2e4 - 1, 2e4 - 1]),
        (PAIRED[1], [8e3, 2e3], [-0.8, 0.2]),
    ):
        losses, *_ = loss(policy, zero, zero, zero, 1.0)
        (slope,) = torch.autograd.grad(losses.sum(), policy)
        torch.testing.assert_close(losses.detach(), torch.tensor(values, dtype=dtype))
        torch.testing.assert_close(slope, torch.tensor(slopes, dtype=dtype))


@pytest.mark.parametrize(("loss", "name"), list(zip(PAIRED, ("ipo_loss", "conservative_dpo_loss"))))
def test_shapes_that_would_broadcast_and_a_beta_of_zero_are_refused(loss, name):
    row, one = torch.zeros(3), torch.zeros(1)
    with pytest.raises(ValueError, match=rf"{name} needs four tensors of one shape \[batch\], found \[\(1,\), \(3,\)"):
        loss(row, row, one, one, 0.1)
    for beta in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{name} needs beta > 0, found {beta}"):
            loss(row, row, row, row, beta)


@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5, float("nan")])
def test_more_than_half_the_labels_cannot_be_wrong(label_smoothing):
    with pytest.raises(ValueError, match=rf"label_smoothing in \[0, 0.5\), found {label_smoothing}"):
        conservative_dpo_loss(*[torch.zeros(1)] * 4, 0.1, label_smoothing)


@pytest.mark.parametrize("name", ["ipo", "aot"])
def test_trls_trainer_has_the_same_loss(name, tiny_folder, tokenizer, triplets, tmp_path):
    """TRL's IPO is of mean log-probabilities per token; its AOT, of one pair, is the conservative DPO loss."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path),
        report_to=[],
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=1,
        beta=0.3,
        loss_type=[name],
        label_smoothing=0.2,
        precompute_ref_log_probs=True,
    )
    rows = [{"prompt": f"Say it again: {t.sentence}\n", "chosen": t.chosen, "rejected": t.rejected} for t in triplets]
    trainer = trl.DPOTrainer(
        model=str(tiny_folder),
        args=arguments,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows[:2]),
    )
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    # A reference other than the policy: TRL takes its precomputed log-probabilities from the batch.
    batch |= {"ref_chosen_logps": torch.tensor([-70.0]), "ref_rejected_logps": torch.tensor([-110.0])}
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, dict(batch)).item()
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    tokens = logits[:, :-1].log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    counted = batch["completion_mask"][:, 1:]
    policy = (tokens * counted).sum(1)
    reference = torch.cat([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])
    if name == "ipo":
        policy, reference = (x / counted.sum(1) for x in (policy, reference))
        ours, *_ = ipo_loss(*policy.split(1), *reference.split(1), 0.3)
    else:
        ours, *_ = conservative_dpo_loss(*policy.split(1), *reference.split(1), 0.3, 0.2)
    assert ours.item() == pytest.approx(theirs, rel=1e-4)


# Embeddings


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


# Displacement


def _ches_by_hand(states, lengths):
    """One pair, one double loop over positions, as in the definition's first form."""
    chosen, rejected = states[: lengths[0]], states[lengths[0] : sum(lengths)]
    across = sum(float(a @ b) for a in chosen for b in rejected)
    within = sum(float(a @ b) for a in chosen for b in chosen)
    return across - within, across / (lengths[0] * lengths[1]) - within / lengths[0] ** 2


def test_ches_is_the_sum_over_all_pairs_of_positions():
    lengths = torch.tensor([[3, 2], [1, 4]])
    states = points(10, 6)
    owner = torch.arange(4).repeat_interleave(lengths.flatten())
    by_hand = [_ches_by_hand(states[:5], [3, 2]), _ches_by_hand(states[5:], [1, 4])]
    # The order of the rows must not matter.
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    plain = ches_score(states[order], owner[order], lengths)
    normalised = ches_score(states[order], owner[order], lengths, length_normalised=True)
    torch.testing.assert_close(torch.cat([plain, normalised], 1), torch.tensor(by_hand, dtype=torch.float64))


def test_ches_of_a_response_with_itself_is_zero_and_of_an_opposite_one_negative():
    states, lengths = points(2, 3, 5).float(), torch.tensor([[2, 2, 2]])
    owner = torch.tensor([0, 0, 1, 1, 2, 2])
    chosen = states[0, :2]
    same_opposite = ches_score(torch.cat([chosen, chosen, -chosen]), owner, lengths)
    assert same_opposite.shape == (1, 2)
    torch.testing.assert_close(same_opposite[0, 0], torch.tensor(0.0))
    torch.testing.assert_close(same_opposite[0, 1], -2 * chosen.sum(0).square().sum())


def test_ches_reads_the_states_that_predict_the_response_from_a_packed_row(tiny_llama):
    preferences = [Preference([5, 6], ([7, 8, 9], [4, 2])), Preference([5, 3, 9], ([7, 2], [4, 4, 2, 1]))]
    (packed,) = pack_preferences(preferences, 100)
    with torch.no_grad():
        hidden = hidden_states(tiny_llama, **packed.packed.inputs())[0][packed.source]
        scores = ches_score(hidden, packed.owner, packed.lengths, length_normalised=True)
        for place, example in enumerate(packed.examples):
            prompt, responses = preferences[example].prompt, preferences[example].responses
            # From the prompt's last token to the response's last but one.
            states = [
                hidden_states(tiny_llama, torch.tensor([[*prompt, *response]]))[0, len(prompt) - 1 : -1]
                for response in responses
            ]
            expected = _ches_by_hand(torch.cat(states).double(), [len(response) for response in responses])[1]
            assert scores[place].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": torch.tensor([2, 1])}, r"lengths \[n, responses >= 2\], found \(2,\)"),
        ({"lengths": torch.tensor([[3]])}, r"found \(1, 1\)"),
        ({"owner": torch.tensor([0, 1])}, r"found \(3, 4\) and \(2,\)"),
        ({"lengths": torch.tensor([[1, 2]])}, "lengths that count the owners"),
        ({"lengths": torch.tensor([[2, 1], [0, 0]]), "owner": torch.tensor([0, 0, 5])}, "count the owners"),
    ],
)
def test_owners_and_lengths_that_do_not_fit_are_refused(change, message):
    arguments = {"hidden": torch.ones(3, 4), "owner": torch.tensor([0, 0, 1]), "lengths": torch.tensor([[2, 1]])}
    with pytest.raises(ValueError, match=message):
        ches_score(**arguments | change)


def test_ches_of_narrow_states_is_summed_in_float32():
    states = torch.tensor([1.0, 0.5], dtype=torch.bfloat16).repeat_interleave(511)[:, None]
    owner, lengths = torch.arange(2).repeat_interleave(511), torch.tensor([[511, 511]])
    # A sum of 511 has one bit too many for bfloat16.
    assert ches_score(states, owner, lengths).item() == (255.5 - 511) * 511


def test_ches_is_a_monitor_and_has_no_gradient():
    states = torch.ones(2, 3, requires_grad=True)
    assert not ches_score(states, torch.arange(2), torch.ones(1, 2, dtype=torch.int64)).requires_grad
