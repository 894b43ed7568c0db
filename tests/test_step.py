"""The step's losses in the loop: each does what it is for, and their weighted sum is what is minimised."""

import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import SETTINGS, divergences, weights
from transformers import OPTConfig, OPTForCausalLM

from sempa.batching.batches import Batch, make_batch, rounded_up, steps_per_epoch
from sempa.batching.packing import pack_preferences, pack_texts
from sempa.batching.prompts import encode_triplet
from sempa.config import Config
from sempa.data.triplets import Triplet
from sempa.embedding.embed import embed
from sempa.errors import SempaError
from sempa.evaluation.drift import token_drift
from sempa.evaluation.eval_texts import ScoredTokens
from sempa.losses import all_pairs_infonce_loss, ches_score
from sempa.model.adapter_files import read_adapter, set_lora
from sempa.model.forward import row_states
from sempa.model.layers import noisy_embeddings
from sempa.model.logprobs import sequence_logprobs
from sempa.model.lora import adapter_disabled, lora_parameters
from sempa.training import step as module
from sempa.training.base_samples import BaseSample, base_samples, sample_texts
from sempa.training.metrics import read_metrics
from sempa.training.processes import gather_rows
from sempa.training.step import contrast_loss, make_optimizer, retention_loss, train_step

ALL_LOSSES = {"objective": "dpo", "contrast": 1.0, "retention": 5.0}


@pytest.mark.parametrize("objective", ["conservative-dpo", "ipo"])
def test_every_offline_objective_raises_the_margin(setting, tmp_path, objective):
    setting(objective=objective, epochs=4.0, lora_dropout=0.0, beta=0.05)
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert records[0]["rewards/margins"] == 0.0
    assert records[-1]["rewards/margins"] > 0.1
    assert records[-1]["loss"] < records[0]["loss"]


def test_the_loss_is_the_weighted_sum_of_its_parts(setting, tmp_path, few_samples):
    weights = {"preference": 0.5, "anchor": 2.0, "contrast": 0.25, "retention": 3.0}
    setting(**ALL_LOSSES | weights | {"lora_dropout": 0.0})
    for r in (r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in r):
        rest = 2.0 * r["nll_loss"] + 0.25 * r["contrast_loss"] + 3.0 * r["neutral_kl"]
        # What is left is the preference loss: log 2 at first, and a convex function's mean lies above its value there.
        left = (r["loss"] - rest) / 0.5
        assert left >= math.log1p(math.exp(-r["rewards/margins"])) - 1e-5
        if r["step"] == 1:
            assert left == pytest.approx(math.log(2), rel=1e-5)


def test_contrast_draws_paraphrases_together_and_retention_holds_the_model(setting, tmp_path, few_samples):
    free = {"objective": "none", "anchor": 0.0, "contrast": 1.0, "epochs": 6.0, "lora_dropout": 0.0}
    setting("free", **free)
    base, _ = setting("held", **free, retention=50.0)
    runs = {
        name: [r for r in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in r] for name in ("free", "held")
    }
    for records in runs.values():
        assert records[-1]["contrast_loss"] < 0.7 * records[0]["contrast_loss"]
    texts = sample_texts(base)
    adapter = {name: read_adapter(tmp_path / name / "adapter")[1] for name in runs}
    kl = {}
    for name, tensors in adapter.items():
        set_lora(base.model, tensors, tmp_path)
        kl[name] = token_drift(base.model, [ScoredTokens(ids, 1) for ids in texts], name)["kl"]
    assert kl["held"] < 0.5 * kl["free"]


def test_all_losses_together_resume_bit_exactly(setting, few_samples, monkeypatch):
    settings = ALL_LOSSES
    whole, _ = setting("whole", **settings)
    real_step, calls = torch.optim.AdamW.step, []

    def step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return real_step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(KeyboardInterrupt):
        setting("broken", **settings)
    resumed, _ = setting("broken", **settings)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))


def test_a_ranking_puts_the_neutral_sentence_between(setting, tmp_path, tokenizer):
    triplet = Triplet("A man pets a dog.", "A dog is petted.", "A dog is ignored.", 3, "A man is happy.")
    preference = encode_triplet(tokenizer, triplet, ranking=True, one_word=True)
    texts = [tokenizer.decode(ids) for ids in preference.responses]
    assert [t.split("<|im_end|>")[0] for t in texts] == [triplet.chosen, triplet.neutral, triplet.rejected]
    assert [tokenizer.decode(ids) for ids in preference.one_word] == [
        f'This sentence : "{text}" means in one word:"' for text in (triplet.sentence, triplet.chosen, triplet.rejected)
    ]


NEUTRAL = [
    Triplet(f"A man pets {i} dogs.", f"{i} dogs are petted.", f"{i} dogs are ignored.", i, f"A man has {i} cats.")
    for i in range(8)
]


@pytest.mark.parametrize("triplets", [NEUTRAL], ids=["with neutral"])
@pytest.mark.parametrize("objective", ["plackett-luce", "plackett-luce-top1"])
def test_rankings_learn_from_all_three_responses(setting, tmp_path, objective):
    base, _ = setting(objective=objective, epochs=4.0, lora_dropout=0.0, anchor=0.0)
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    # Of three equal candidates: log 3 for the first place, log 2 more for the second.
    assert records[0]["loss"] == pytest.approx(math.log(3) + (objective == "plackett-luce") * math.log(2), rel=1e-5)
    assert records[-1]["loss"] < records[0]["loss"]
    preferences = [encode_triplet(base.tokenizer, t, ranking=True) for t in NEUTRAL]
    (row,) = pack_preferences(preferences, 1 << 20)
    with torch.no_grad():
        policy = sequence_logprobs(base.model, row)
        with adapter_disabled(base.model):
            reference = sequence_logprobs(base.model, row)
    # The neutral one is a candidate that loses ground to the best: DPO of best and worst would not know it.
    change = (policy - reference).mean(0)
    assert change[0] > change[1]


def longest(sentences, candidates):
    return np.array([[len(text) for text in few] for few in candidates], dtype=float)


def test_embeddings_that_a_step_made_infinite_are_refused_with_the_step_and_a_remedy(setting):
    def scores():
        yield 1.0
        raise SempaError("the encoder returned a zero or non-finite vector for 'a'")

    with pytest.raises(SempaError, match=r"step 2: the encoder returned .* checkpoints are intact: lower"):
        setting(score=scores(), eval_every=1)


@pytest.mark.parametrize(
    ("fraction", "count", "expected"), [(1.1, 110, 121), (0.07, 100, 7), (0.55, 100, 55), (0.5, 3, 2)]
)
def test_a_fraction_is_rounded_up_as_written(fraction, count, expected):
    assert rounded_up(fraction, count) == expected
    assert rounded_up(1.0, count) == count


def test_a_fraction_of_each_batch_is_ranked_and_all_of_it_is_contrasted(tokenizer, triplets):
    preferences = [encode_triplet(tokenizer, t, one_word=True) for t in triplets]
    config = Config(batch_size=6, preference_fraction=0.4, contrast=1.0)
    for batch in (make_batch(config, preferences, step) for step in range(steps_per_epoch(config, preferences))):
        ranked = sorted(i for row in batch.preference_rows for i in row.examples)
        assert len(ranked) == math.ceil(0.4 * len(batch.preferences))
        embedded = sorted(member for row in batch.sentence_rows for member in row.members)
        assert embedded == list(range(3 * len(batch.preferences)))
        assert ranked == list(range(len(ranked)))


def test_responses_that_no_loss_weighs_are_not_packed(tokenizer, triplets):
    preferences = [encode_triplet(tokenizer, t, one_word=True) for t in triplets]
    for settings, ranked in (({}, True), ({"preference": 0.0}, False), ({"preference": 0.0, "anchor": 0.1}, True)):
        assert bool(make_batch(Config(**settings), preferences, 0).preference_rows) == ranked


def test_contrast_is_infonce_on_the_embeddings(setting, tokenizer, triplets):
    base, _ = setting(epochs=1.0)
    config = Config(batch_size=6, contrast=1.0, readout="prompteol")
    batch = make_batch(config, [encode_triplet(tokenizer, t, one_word=True) for t in triplets], 0)
    _, found = contrast_loss(config, base.model, batch.sentence_rows, batch.text_ids)
    by_line = {triplet.line: triplet for triplet in triplets}
    chosen = [by_line[preference.line] for preference in batch.preferences]
    columns = ([getattr(t, name) for t in chosen] for name in ("sentence", "chosen", "rejected"))
    expected = all_pairs_infonce_loss(*(torch.from_numpy(embed(base, texts)) for texts in columns), config.temperature)
    assert found["contrast_loss"] == pytest.approx(expected.mean().item(), rel=1e-4)


def test_a_batch_is_packed_when_asked_for_and_the_same_every_time(tokenizer, triplets):
    preferences = [encode_triplet(tokenizer, t, one_word=True) for t in triplets]
    config = Config(batch_size=6, contrast=1.0, anchor=1.0)
    assert steps_per_epoch(config, preferences) == 3
    once, again = (make_batch(config, preferences, 1) for _ in range(2))
    assert once is not again
    assert once.preferences == again.preferences
    for kind in ("preference_rows", "sentence_rows"):
        tokens = [[row.packed.tokens for row in getattr(batch, kind)] for batch in (once, again)]
        assert tokens[0] == tokens[1] != []


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8])
def test_processes_get_equally_many_rows_about_equally_full(tokenizer, triplets, processes):
    config = Config(batch_size=16, preference_fraction=1.0, row_tokens=512)
    preferences = [encode_triplet(tokenizer, t, one_word=True) for t in triplets]
    alone, shared = (make_batch(config, preferences, 0, count) for count in (1, processes))
    assert alone.preferences == shared.preferences and alone.ranked == shared.ranked == 16
    for kind in ("preference_rows", "sentence_rows"):
        fewest, lengths = len(getattr(alone, kind)), [len(row.packed.tokens) for row in getattr(shared, kind)]
        assert len(lengths) == math.ceil(fewest / processes) * processes and max(lengths) <= 512
        work = [sum(lengths[rank::processes]) for rank in range(processes)]
        assert min(work) > 0.6 * max(work)


def test_equal_texts_of_a_batch_have_one_number(tokenizer):
    triplets = [Triplet("A dog runs.", "An animal runs.", "A dog sleeps.", 1), Triplet("A dog runs.", "X.", "Y.", 2)]
    config = Config(batch_size=2, contrast=1.0)
    batch = make_batch(config, [encode_triplet(tokenizer, t, one_word=True) for t in triplets], 0)
    assert batch.text_ids.shape == (3, 2)
    assert batch.text_ids[0, 0] == batch.text_ids[0, 1]
    assert len(batch.text_ids.unique()) == 5


@pytest.mark.parametrize("readout", ["prompteol", "attention-sum"])
def test_a_process_without_a_row_gathers_width_and_dtype_of_the_others(tokenizer, triplets, monkeypatch, readout):
    """OPT's last state is narrower than its blocks; in bfloat16 attention outputs are summed in float32."""
    shape = {"hidden_size": 64, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    config = OPTConfig(vocab_size=len(tokenizer), num_attention_heads=4, do_layer_norm_before=False, **shape)
    model = OPTForCausalLM(config).to(torch.bfloat16).eval()
    gathered = []

    def recorded(empty, parts, *rest):
        gathered.append((empty, torch.cat([empty, *parts])))
        return gather_rows(empty, parts, *rest)

    monkeypatch.setattr("sempa.training.step.gather_rows", recorded)
    batch = make_batch(Config(batch_size=6), [encode_triplet(tokenizer, t, one_word=True) for t in triplets], 0)
    contrast_loss(Config(readout=readout), model, batch.sentence_rows, batch.text_ids)
    ((alone, together),) = gathered
    assert (alone.dtype, alone.shape[1]) == (together.dtype, 32 if readout == "prompteol" else 64)


def test_every_row_of_samples_has_its_turn(setting, few_samples, monkeypatch):
    real, seen = module.retention_loss, []
    monkeypatch.setattr(module, "retention_loss", lambda *given: seen.append(given[2]) or real(*given))
    base, _ = setting(retention=1.0, epochs=4.0)
    rows = [sample.packed.tokens for sample in base_samples(base)]
    assert 1 < len(rows) <= len(seen)
    assert [sample.packed.tokens for sample in seen] == [rows[step % len(rows)] for step in range(len(seen))]


def test_every_seed_and_step_draws_a_dropout_of_its_own(setting, tokenizer, triplets):
    base, _ = setting(epochs=0.5)
    batch = make_batch(Config(**SETTINGS), [encode_triplet(tokenizer, t) for t in triplets], 0)

    def loss(seed, step):
        config = Config(**SETTINGS, seed=seed)
        # The learning rate of a run's end is zero.
        return train_step(config, base.model, make_optimizer(config, base.model), batch, [], step, step)["loss"]

    assert loss(0, 8) == loss(0, 8) != loss(1, 8)
    assert loss(0, 8) != loss(0, 9)


def test_responses_of_equal_reward_are_not_told_apart(setting, tmp_path):
    setting(epochs=0.25, lora_dropout=0.0)
    record, *_ = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert (record["rewards/margins"], record["rewards/accuracies"]) == (0.0, 0.0)


@pytest.mark.parametrize("triplets", [NEUTRAL], ids=["with neutral"])
def test_the_monitor_compares_the_best_response_with_the_worst(setting, tmp_path):
    base, _ = setting(objective="plackett-luce", lora_dropout=0.0, batch_size=8, epochs=1.0)
    record, *_ = read_metrics(tmp_path / "run" / "metrics.jsonl")
    (row,) = pack_preferences([encode_triplet(base.tokenizer, t, ranking=True) for t in NEUTRAL], 1 << 20)
    with torch.no_grad(), adapter_disabled(base.model):
        hidden = row_states(base.model, row.packed)[row.source]
    scores = ches_score(hidden, row.owner, row.lengths, length_normalised=True)
    assert record["ches"] == pytest.approx(scores[:, -1].mean().item(), rel=1e-4)


def test_accuracy_asks_which_chosen_sentence_a_sentence_finds(tiny_llama, monkeypatch):
    sentences, chosen = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [9.0, 4.0]]
    embeddings = torch.tensor([*sentences, *chosen, [-1.0, 0.0], [0.0, -1.0]])
    monkeypatch.setattr(module, "gather_rows", lambda *_: embeddings)
    _, metrics = contrast_loss(Config(), tiny_llama, [], torch.arange(6).view(3, 2))
    # The second chosen one lies nearer to the first sentence than to its own, and is longer than the first's.
    assert metrics["contrast_accuracy"] == 1.0


@pytest.mark.parametrize(("text_ids", "found"), [([0, 1, 2, 3], 0.5), ([0, 1, 2, 2], 1.0)])
def test_a_chosen_sentence_that_stands_twice_in_the_batch_is_found_at_either_place(
    tiny_llama, monkeypatch, text_ids, found
):
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    monkeypatch.setattr(module, "gather_rows", lambda *_: embeddings)
    _, metrics = contrast_loss(Config(), tiny_llama, [], torch.tensor([*text_ids, 4, 5]).view(3, 2))
    assert metrics["contrast_accuracy"] == found


@pytest.mark.parametrize("left", [1.0, math.inf])
def test_a_gradient_that_was_left_is_no_part_of_the_next_step(adapted_base, tokenizer, triplets, left):
    """By a step that was interrupted, or by a `backward` in a notebook."""
    config, parameters = Config(**SETTINGS | {"lora_dropout": 0.0}), lora_parameters(adapted_base.model).values()
    batch = make_batch(config, [encode_triplet(tokenizer, t) for t in triplets], 0)
    before, after = [parameter.detach().clone() for parameter in parameters], []
    for gradient in (0.0, left):
        for parameter, value in zip(parameters, before, strict=True):
            parameter.data.copy_(value)
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer = make_optimizer(config, adapted_base.model)
        after.append(train_step(config, adapted_base.model, optimizer, batch, [], 1, 4)["grad_norm"])
        after.append([parameter.detach().clone() for parameter in parameters])
    norm, values, again, values_again = after
    assert norm == again
    assert all(map(torch.equal, values, values_again))
    assert not any(map(torch.equal, values, before))


def test_the_optimiser_is_the_configs(adapted_base):
    (group,) = make_optimizer(Config(learning_rate=3e-4, beta2=0.95, weight_decay=0.1), adapted_base.model).param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.9, 0.95), 0.1)


def test_noise_has_its_size_in_the_thread_that_asks_for_it_alone(tiny_llama):
    tokens, embeddings = torch.arange(300)[None], tiny_llama.get_input_embeddings()
    plain = embeddings(tokens)
    with noisy_embeddings(tiny_llama, 0.5), ThreadPoolExecutor(1) as pool:
        first, second = embeddings(tokens) - plain, embeddings(tokens) - plain
        assert torch.equal(pool.submit(embeddings, tokens).result(), plain)
    assert torch.equal(embeddings(tokens), plain)
    unit = plain.square().mean().sqrt()
    for noise in (first, second):
        assert noise.std() / unit == pytest.approx(0.5, rel=0.05) and noise.mean().abs() < 0.02 * unit
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].abs() < 0.05


@pytest.mark.parametrize("readout", ["prompteol", "attention-sum"])
def test_the_contrast_alone_sees_the_noise_that_the_step_draws(adapted_base, triplets, readout):
    model, tokenizer = adapted_base.model, adapted_base.tokenizer
    batch = make_batch(Config(batch_size=4), [encode_triplet(tokenizer, t, one_word=True) for t in triplets], 0)

    def measured(noise, step):
        config = Config(batch_size=4, noise=noise, readout=readout, learning_rate=1e-30)
        return train_step(config, model, make_optimizer(config, model), batch, [], step, 8)

    quiet, loud, again, later = measured(0.0, 0), measured(0.5, 0), measured(0.5, 0), measured(0.5, 1)
    assert len({quiet["contrast_loss"], loud["contrast_loss"], later["contrast_loss"]}) == 3
    assert again == loud
    assert loud["rewards/margins"] == quiet["rewards/margins"]


NOTHING = Batch([], [], [], torch.empty(3, 0))


@pytest.mark.parametrize(
    ("draws", "one_after_another"),
    [
        ({}, False),
        ({"lora_dropout": 0.1}, True),
        ({"noise": 0.5}, False),
        ({"checkpoint_activations": True}, False),
        ({"noise": 0.5, "checkpoint_activations": True}, False),
    ],
)
def test_losses_that_draw_dropout_run_one_after_another(adapted_base, monkeypatch, draws, one_after_another):
    model, config, asked = adapted_base.model, Config(**draws), []
    monkeypatch.setattr(module, "backward", lambda *_, in_order: asked.append(in_order) or {"loss": 1.0})
    train_step(config, model, make_optimizer(config, model), NOTHING, [], 0, 8)
    assert asked == [one_after_another]


def test_a_large_gradient_is_clipped_to_length_one(adapted_base, tokenizer, triplets):
    model, norms = adapted_base.model, []
    config = Config(batch_size=4, contrast=0.0, preference_fraction=1.0, preference=1e3)
    batch = make_batch(config, [encode_triplet(tokenizer, t) for t in triplets], 0)
    optimizer, parameters = make_optimizer(config, model), lora_parameters(model).values()
    optimizer.step = lambda: norms.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
    assert train_step(config, model, optimizer, batch, [], 0, 8)["grad_norm"] > 10
    assert norms == [pytest.approx(1.0, rel=1e-4)]


def test_a_gradient_that_is_not_finite_stops_before_the_adapter_is_touched(adapted_base, monkeypatch):
    def backward(model, losses, parameters, in_order):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, torch.inf)
        return {"loss": 1.0}

    monkeypatch.setattr(module, "backward", backward)
    before, model = weights(adapted_base), adapted_base.model
    with pytest.raises(SempaError, match=r"step 1: the loss is 1.0 and the gradient norm (inf|nan)"):
        train_step(Config(), model, make_optimizer(Config(), model), NOTHING, [], 0, 8)
    assert all(torch.equal(before[name], after) for name, after in weights(adapted_base).items())


def test_retention_is_the_divergence_of_whole_distributions_where_logits_are_scaled(adapted_granite):
    model, ids = adapted_granite.model, [5, 9, 200, 31, 8, 77, 12]
    (row,) = pack_texts([ids], 64)
    with torch.no_grad():
        with adapter_disabled(model):
            sample = BaseSample(row, row_states(model, row))
        _, found = retention_loss(Config(), model, sample)
    assert found["neutral_kl"] == pytest.approx(divergences(model, ids).mean().item(), rel=1e-3)
