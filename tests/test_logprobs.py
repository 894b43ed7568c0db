"""Sentence log-probabilities and loss of a whole batch against TRL's trainer on the same token ids."""

import copy

import pytest
import torch

from sempa.batching.packing import pack_preferences
from sempa.batching.prompts import Preference
from sempa.losses import dpo_loss, infonce_loss, plackett_luce_loss
from sempa.model.base import load_base
from sempa.model.forward import row_states
from sempa.model.logprobs import (
    head_logits,
    response_token_logprobs,
    scale_for_head,
    sequence_logprobs,
    sum_by_response,
)


def test_trl_reports_the_same_loss_rewards_and_log_probabilities(tiny_folder, tokenizer, triplets, tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    policy = load_base(str(tiny_folder), "float32", "cpu").model
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    rows = [
        {"prompt": f"Say it again: {t.sentence}\n", "chosen": t.chosen, "rejected": t.rejected} for t in triplets[:6]
    ]
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, per_device_train_batch_size=6, beta=0.3
    )
    # TRL runs models that transformers' own attention serves.
    models = [type(policy)(policy.config) for _ in range(2)]
    for model, source in zip(models, (policy, reference), strict=True):
        model.load_state_dict(source.state_dict())
        model.set_attn_implementation("sdpa")
    trainer = trl.DPOTrainer(
        model=models[0],
        ref_model=models[1],
        args=arguments,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
    )
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, dict(batch)).item()
    metrics = {name: values[-1] for name, values in trainer._metrics["eval"].items()}

    preferences = _preferences(batch)
    ours = {}
    for name, model in (("policy", policy), ("reference", reference)):
        model.set_attn_implementation("sempa")
        (packed,) = pack_preferences(preferences, 100_000)
        with torch.no_grad():
            ours[name] = sequence_logprobs(model.eval(), packed)
    losses, chosen, rejected = dpo_loss(*ours["policy"].unbind(1), *ours["reference"].unbind(1), 0.3)
    assert losses.mean().item() == pytest.approx(theirs, rel=1e-4)
    log_ratios = ours["policy"] - ours["reference"]
    assert plackett_luce_loss(0.3 * log_ratios).mean().item() == pytest.approx(theirs, rel=1e-4)
    assert infonce_loss(log_ratios, 1 / 0.3).mean().item() == pytest.approx(theirs, rel=1e-4)
    assert chosen.mean().item() == pytest.approx(metrics["rewards/chosen"], rel=1e-3)
    assert rejected.mean().item() == pytest.approx(metrics["rewards/rejected"], rel=1e-3)
    assert abs((chosen - rejected).mean().item()) > 1e-3
    assert ours["policy"][:, 0].mean().item() == pytest.approx(metrics["logps/chosen"], rel=1e-4)


def _preferences(batch):
    """TRL stacks the chosen conversations over the rejected ones, padded."""
    ids, seen, answer = (batch[name] for name in ("input_ids", "attention_mask", "completion_mask"))
    sequences = []
    for row in range(len(ids)):
        tokens = ids[row][seen[row].bool()].tolist()
        length = int(answer[row].sum())
        sequences.append((tokens[:-length], tokens[-length:]))
    half = len(sequences) // 2
    return [Preference(sequences[i][0], (sequences[i][1], sequences[half + i][1]), line=i) for i in range(half)]


@pytest.mark.parametrize(
    ("name", "value", "factor"), [("logits_scaling", 8.0, 1 / 8), ("logit_scale", 0.0625, 0.0625), (None, None, 1.0)]
)
def test_architectures_that_scale_their_logits_are_honoured(tiny_llama, name, value, factor):
    if name:
        setattr(tiny_llama.config, name, value)
    hidden = torch.ones(2, 3)
    torch.testing.assert_close(scale_for_head(tiny_llama, hidden), hidden * factor)


def test_the_answers_own_tokens_are_told_from_those_that_close_it(tiny_llama):
    preferences = [
        Preference([5, 6], ([7, 8, 9, 2, 1], [4, 2, 1]), closing=2),
        Preference([5, 3], ([7, 2, 1], [4, 4, 2, 1]), closing=2),
    ]
    (packed,) = pack_preferences(preferences, 100)
    answer = packed.answer.float()
    counts = dict(zip(packed.examples, sum_by_response(answer, packed).tolist(), strict=True))
    assert counts == {0: [3, 1], 1: [1, 2]}
    whole = response_token_logprobs(tiny_llama, row_states(tiny_llama, packed.packed), packed)
    torch.testing.assert_close(sum_by_response(whole, packed), sequence_logprobs(tiny_llama, packed))
    # The sum over the answer alone is that of the sequences without their closing tokens.
    open_ended = [Preference(p.prompt, tuple(r[:-2] for r in p.responses)) for p in preferences]
    (shorter,) = pack_preferences(open_ended, 100)
    own = dict(zip(packed.examples, sum_by_response(whole * answer, packed), strict=True))
    for example, expected in zip(shorter.examples, sequence_logprobs(tiny_llama, shorter), strict=True):
        torch.testing.assert_close(own[example], expected)


def test_logits_are_float32_whatever_the_models_dtype(tiny_llama):
    hidden = torch.randn(3, 32, dtype=torch.bfloat16)
    assert head_logits(tiny_llama.bfloat16(), hidden).dtype == torch.float32
