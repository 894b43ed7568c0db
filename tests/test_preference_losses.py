"""IPO and conservative DPO against closed forms, torch's own functions and TRL."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import points
from hypothesis import given
from hypothesis import strategies as st

from sempa.losses import conservative_dpo_loss, dpo_loss, ipo_loss

logps = st.lists(st.floats(-500, 0), min_size=4, max_size=4)
betas = st.floats(0.01, 2)
# A loss of log-probabilities with its further arguments filled in.
PAIRED = [ipo_loss, lambda *t: conservative_dpo_loss(*t, 0.2)]


def tensors(values):
    return [torch.tensor([v], dtype=torch.float64) for v in values]


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
