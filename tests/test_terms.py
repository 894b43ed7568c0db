"""The terms of the objective in the loop: each does what it is for, and their sum is what is minimised."""

import dataclasses
import math
import os
import signal

import numpy as np
import pytest
import torch
from conftest import weights

from sempa.batching.batches import Batches, rounded_up
from sempa.batching.packing import pack_preferences
from sempa.batching.prompts import encode_triplet
from sempa.config import Config
from sempa.data.examples import Triplet
from sempa.embedding.embedder import embed
from sempa.errors import SempaError
from sempa.evaluation.drift import measure_retention
from sempa.evaluation.eval_texts import Scored
from sempa.losses import all_pairs_infonce_loss, embedding_infonce_loss
from sempa.model.base import load_base
from sempa.model.logprobs import sentence_logprobs
from sempa.model.lora import LoraLinear, adapter_disabled, add_lora, lora_parameters, read_adapter, set_lora
from sempa.training import terms as running
from sempa.training.base_samples import NeutralText, neutral_texts
from sempa.training.loop import Interrupted
from sempa.training.metrics import read_metrics
from sempa.training.objectives import contrast_term, preference_losses, preference_terms, retention_term
from sempa.training.online import sample_preferences, similarity_judge
from sempa.training.processes import World
from sempa.training.reference import Reference
from sempa.training.terms import add_terms

TERMS = {
    "objective": "dpo",
    "contrast": 1.0,
    "retention": 5.0,
    "neutral_tokens": 64,
    "uniformity": 0.1,
    "isotropy": 0.1,
}


@pytest.mark.parametrize("objective", ["conservative-dpo", "ipo"])
def test_every_offline_objective_raises_the_margin(setting, tmp_path, objective):
    setting(objective=objective, epochs=4.0, lora_dropout=0.0, beta=0.05)
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert records[0]["rewards/margins"] == 0.0
    assert records[-1]["rewards/margins"] > 0.1
    assert records[-1]["loss"] < records[0]["loss"]


def test_the_loss_is_the_weighted_sum_of_its_terms(setting, tmp_path, few_words):
    weights = {"preference": 0.5, "anchor": 2.0, "contrast": 0.25, "retention": 3.0}
    setting(**TERMS | weights | {"uniformity": 0.0, "isotropy": 0.0, "lora_dropout": 0.0})
    for r in (r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in r):
        rest = 2.0 * r["nll_loss"] + 0.25 * r["contrast_loss"] + 3.0 * r["neutral_kl"]
        # What is left is the preference loss: log 2 at first, and a convex function's mean lies above its value there.
        left = (r["loss"] - rest) / 0.5
        assert left >= math.log1p(math.exp(-r["rewards/margins"])) - 1e-5
        if r["step"] == 1:
            assert left == pytest.approx(math.log(2), rel=1e-5)


def test_contrast_draws_paraphrases_together_and_retention_holds_the_model(setting, tmp_path, few_words):
    free = {"objective": "none", "anchor": 0.0, "contrast": 1.0, "epochs": 6.0, "lora_dropout": 0.0}
    setting("free", **free)
    base, _ = setting("held", **free, retention=50.0, neutral_tokens=64)
    runs = {
        name: [r for r in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in r] for name in ("free", "held")
    }
    for records in runs.values():
        assert records[-1]["contrast_loss"] < 0.7 * records[0]["contrast_loss"]
    texts = neutral_texts(base)
    adapter = {name: read_adapter(tmp_path / name / "adapter")[1] for name in runs}
    kl = {}
    for name, tensors in adapter.items():
        set_lora(base.model, tensors, tmp_path)
        kl[name] = measure_retention(base.model, [Scored(ids, list(range(1, len(ids)))) for ids in texts], name).kl
    assert kl["held"] < 0.5 * kl["free"]


def test_all_terms_together_resume_to_the_same_bits(setting, few_words, monkeypatch):
    settings = TERMS | {"sparse": 0.1, "sparse_tokens": 8}
    whole, _ = setting("whole", **settings)
    real_step, calls = torch.optim.AdamW.step, []

    def step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return real_step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(Interrupted):
        setting("broken", **settings)
    resumed, _ = setting("broken", **settings)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))


def test_a_ranking_puts_the_neutral_sentence_between(setting, tmp_path, tokenizer):
    triplet = Triplet("A man pets a dog.", "A dog is petted.", "A dog is ignored.", 3, "A man is happy.")
    preference = encode_triplet(tokenizer, triplet, ranking=True, words=True)
    told = [tokenizer.decode(ids) for ids in preference.responses]
    assert [t.split("<|im_end|>")[0] for t in told] == [triplet.chosen, triplet.neutral, triplet.rejected]
    assert [tokenizer.decode(ids) for ids in preference.words] == [
        f'This sentence : "{text}" means in one word:"'
        for text in (triplet.sentence, triplet.chosen, triplet.neutral, triplet.rejected)
    ]
    policy = torch.tensor([[-3.0, -5.0, -4.0]], dtype=torch.float64)
    reference = torch.tensor([[-4.0, -4.0, -4.0]], dtype=torch.float64)
    config = Config(objective="plackett-luce", beta=0.7)
    rewards = 0.7 * (policy - reference)[0]
    expected = -(rewards[0] - rewards.logsumexp(0)) - (rewards[1] - rewards[1:].logsumexp(0))
    torch.testing.assert_close(preference_losses(config, policy, reference)[0], expected)


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
    (row,) = pack_preferences(preferences, range(len(preferences)), 1 << 20)
    with torch.no_grad():
        policy = sentence_logprobs(base.model, row)
        with adapter_disabled(base.model):
            reference = sentence_logprobs(base.model, row)
    # The neutral one is a candidate that loses ground to the best: DPO of best and worst would not know it.
    change = (policy - reference).mean(0)
    assert change[0] > change[1]


def longest(sentences, candidates):
    return np.array([[len(text) for text in few] for few in candidates], dtype=float)


@pytest.mark.parametrize("objective", ["online-ipo", "ipo-md"])
def test_an_online_step_moves_towards_what_the_judge_prefers(setting, tokenizer, triplets, objective):
    """The pairs of the first step, drawn again and judged again, have a positive margin after it."""
    settings = {"objective": objective, "anchor": 0.0, "lora_dropout": 0.0, "online_tokens": 6, "batch_size": 16}
    base, state = setting(judge=longest, epochs=1.0, learning_rate=1e-3, warmup=0.0, **settings)
    assert state["step"] == 1
    preferences = [encode_triplet(tokenizer, t) for t in triplets]
    order = [p for batch in Batches(Config(batch_size=16), preferences) for p in batch.preferences]
    with adapter_disabled(base.model):
        # Before the first step policy and reference are one.
        made = sample_preferences(Config(objective="online-ipo", online_tokens=6), base, order, longest, 0)
    assert len(made) > 4
    (row,) = pack_preferences(made, range(len(made)), 1 << 20)
    with torch.no_grad():
        policy = sentence_logprobs(base.model.eval(), row)
        with adapter_disabled(base.model):
            reference = sentence_logprobs(base.model, row)
    margins = (policy - reference)[:, 0] - (policy - reference)[:, 1]
    assert margins.mean() > 0
    assert (margins > 0).float().mean() > 0.6


def test_sampled_preferences_are_the_judges_and_follow_from_the_step(setting, tokenizer, triplets):
    base, _ = setting(epochs=1.0)
    preferences = [encode_triplet(tokenizer, t) for t in triplets[:4]]
    config = Config(objective="online-ipo", online_tokens=6)
    made = sample_preferences(config, base, preferences, longest, 3)
    assert made == sample_preferences(config, base, preferences, longest, 3)
    assert made != sample_preferences(config, base, preferences, longest, 4)
    for preference in made:
        best, worst = (tokenizer.decode(ids, skip_special_tokens=True) for ids in preference.responses)
        assert len(best.strip()) > len(worst.strip())
        assert preference.prompt in [p.prompt for p in preferences]


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        (lambda n: np.full((n, 2), np.nan), "scores that are not finite"),
        (lambda n: np.zeros(n), r"scores of shape \(\d+,\)"),
        (lambda n: np.zeros((n, 3)), r"scores of shape \(\d+, 3\)"),
    ],
)
def test_a_judge_without_scores_is_named(setting, tokenizer, triplets, scores, found):
    base, _ = setting(epochs=1.0)
    preferences = [encode_triplet(tokenizer, t) for t in triplets[:4]]
    config = Config(objective="online-ipo", online_tokens=6)
    with pytest.raises(SempaError, match=f"judge: found {found}, expected finite ones of shape"):
        sample_preferences(config, base, preferences, lambda sentences, _: scores(len(sentences)), 3)


def test_what_a_judge_fails_by_is_not_put_down_to_the_disk(setting):
    def judge(sentences, candidates):
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(ConnectionRefusedError):
        setting(judge=judge, objective="online-ipo", online_tokens=6)


def test_a_development_score_that_is_no_number_is_refused(setting):
    with pytest.raises(SempaError, match="step 1: the development score is nan, expected a finite number"):
        setting(score=[math.nan], eval_every=1)


def test_more_sparse_tokens_than_the_vocabulary_has_are_refused_before_the_first_step(setting):
    with pytest.raises(SempaError, match="sparse_tokens: found 400, expected at most the vocabulary's 320"):
        setting(sparse=0.1, sparse_tokens=400)


@pytest.mark.parametrize(
    ("share", "count", "expected"), [(1.1, 110, 121), (0.07, 100, 7), (0.55, 100, 55), (0.5, 3, 2)]
)
def test_a_share_is_rounded_up_as_written(share, count, expected):
    assert rounded_up(share, count) == expected
    assert rounded_up(1.0, count) == count


def test_the_default_judge_is_the_bases_own_similarity(setting, triplets):
    base, _ = setting(epochs=1.0)
    sentences, candidates = [triplets[0].sentence], [[triplets[0].sentence, triplets[7].rejected]]
    scores = similarity_judge(base)(sentences, candidates)
    assert scores.shape == (1, 2)
    assert scores[0, 0] == pytest.approx(1.0, abs=1e-5)
    assert scores[0, 1] < 1.0
    with adapter_disabled(base.model):
        assert np.array_equal(similarity_judge(base)(sentences, candidates), scores)


def test_a_share_of_each_batch_is_ranked_and_all_of_it_is_contrasted(tokenizer, triplets):
    preferences = [encode_triplet(tokenizer, t, words=True) for t in triplets]
    config = Config(batch_size=6, preference_share=0.4, contrast=1.0)
    for batch in Batches(config, preferences):
        ranked = sorted(i for row in batch.rows for i in row.examples)
        assert len(ranked) == math.ceil(0.4 * batch.size)
        embedded = sorted(member for row in batch.sentences for member in row.members)
        assert embedded == list(range(3 * batch.size))
        assert [preferences[i] for i in ranked] == sorted(batch.preferences[: len(ranked)], key=preferences.index)


@pytest.mark.parametrize(
    ("candidates", "loss"), [("responses", embedding_infonce_loss), ("all", all_pairs_infonce_loss)]
)
def test_contrast_is_infonce_on_the_embeddings(setting, tokenizer, triplets, candidates, loss):
    base, _ = setting(epochs=1.0)
    config = Config(batch_size=6, contrast=1.0, contrast_candidates=candidates)
    batch = Batches(config, [encode_triplet(tokenizer, t, words=True) for t in triplets])[0]
    term = contrast_term(config, base.model.eval(), batch.sentences, batch.texts, None, World(), 0)
    found = add_terms(config, base.model, [term])
    by_line = {triplet.line: triplet for triplet in triplets}
    chosen = [by_line[preference.line] for preference in batch.preferences]
    columns = ([getattr(t, name) for t in chosen] for name in ("sentence", "chosen", "rejected"))
    expected = loss(*(torch.from_numpy(embed(base, texts)) for texts in columns), config.temperature)
    assert found["contrast_loss"] == pytest.approx(expected.mean().item(), rel=1e-4)


def whole_step(tiny_folder, triplets, dtype):
    """A base with a fresh adapter, a batch, and what a step with every kind of term consults."""
    config = Config(batch_size=6, dtype=dtype, preference_share=0.4, **TERMS | {"retention": 1.0, "anchor": 0.5})
    base = load_base(str(tiny_folder), dtype, "cpu", emulate=True)
    add_lora(base.model, 2, 32.0)
    for parameter in lora_parameters(base.model).values():
        parameter.requires_grad_(True)
    batches = Batches(config, [encode_triplet(base.tokenizer, t, words=True) for t in triplets])
    base.model.train()
    reference = Reference(base, [row for batch in batches for row in batch.rows], len(triplets))
    neutral = NeutralText(base, neutral_texts(base), config.neutral_tokens)
    (batch, *_) = batches
    terms = preference_terms(config, base.model, reference, batch.rows, World(), 0)
    terms.append(retention_term(config, base.model, neutral, 0, World(), 0))
    return config, base, [*terms, contrast_term(config, base.model, batch.sentences, batch.texts, None, World(), 0)]


def trained(base):
    """The adapter's parameters, set to what is far from where training starts."""
    parameters = list(lora_parameters(base.model).values())
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return parameters


def test_terms_in_one_pass_have_the_metrics_and_gradients_that_each_has_alone(tiny_folder, triplets, few_words):
    config, base, terms = whole_step(tiny_folder, triplets, "float32")
    parameters = trained(base)
    together = add_terms(config, base.model, terms)
    gradients = [parameter.grad.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    alone = [add_terms(config, base.model, [term]) for term in terms]
    assert len(terms) == 3
    assert together["neutral_kl"] > 0
    for name, value in together.items():
        assert value == pytest.approx(sum(metrics.get(name, 0.0) for metrics in alone), rel=1e-4, abs=1e-6)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("dtype", "passes"), [("float32", 1), ("bfloat16", 2)])
def test_the_policy_starts_as_its_base_to_the_last_bit_though_terms_share_a_pass(
    tiny_folder, triplets, few_words, monkeypatch, dtype, passes
):
    """In bfloat16 the base reads the very same rows; in float32 what is kept of it will do."""
    config, base, terms = whole_step(tiny_folder, triplets, dtype)
    seen = []
    real = running.states_of_rows
    monkeypatch.setattr(running, "states_of_rows", lambda model, rows: seen.append(len(rows)) or real(model, rows))
    found = add_terms(config, base.model, terms)
    assert base.model.training
    rounding = 0.0 if dtype == "bfloat16" else 1e-5
    for name in ("rewards/margins", "rewards/chosen", "neutral_kl"):
        assert found[name] == pytest.approx(0.0, abs=rounding)
    assert seen == [3] * passes
    blocks, called = base.model.model.layers, []
    blocks[0].register_forward_hook(lambda *_: called.append(1))
    add_terms(config, base.model, terms)
    assert len(called) == passes


def test_rows_with_dropout_run_one_by_one_each_from_its_own_seed(tiny_folder, triplets, few_words):
    config, base, terms = whole_step(tiny_folder, triplets, "float32")
    dropping = dataclasses.replace(config, lora_dropout=0.5)
    for module in base.model.modules():
        if isinstance(module, LoraLinear):
            module.dropout = 0.5
    with torch.no_grad():
        for parameter in lora_parameters(base.model).values():
            parameter.fill_(0.01)
    together = add_terms(dropping, base.model, terms)
    alone = [add_terms(dropping, base.model, [term]) for term in reversed(terms)]
    for name in ("logps/chosen", "contrast_loss", "neutral_kl"):
        assert together[name] == pytest.approx(sum(metrics.get(name, 0.0) for metrics in alone), rel=1e-5)


def test_rows_run_side_by_side_only_as_far_as_row_tokens_go_and_where_a_mask_holds_them_apart(
    tiny_folder, triplets, few_words, monkeypatch
):
    config, base, terms = whole_step(tiny_folder, triplets, "float32")
    sizes = [len(row.tokens) for term in terms for _, row in term.rows]
    seen = []
    real = running.states_of_rows
    monkeypatch.setattr(running, "states_of_rows", lambda model, rows: seen.append(len(rows)) or real(model, rows))
    for limit, expected in ((sum(sizes), [3]), (sizes[0] + sizes[1], [2, 1]), (1, [1, 1, 1])):
        seen.clear()
        add_terms(dataclasses.replace(config, row_tokens=-(-limit // 2)), base.model, terms)
        assert seen == expected
    seen.clear()
    # Processes that share a base must make equally many passes, whatever the lengths of their rows.
    add_terms(dataclasses.replace(config, shard=True), base.model, terms)
    assert seen == [1, 1, 1]
    base.model.draws_chance = True
    seen.clear()
    add_terms(config, base.model, terms)
    assert seen == [1, 1, 1]
    base.model.draws_chance, base.model.takes_block_mask = False, False
    seen.clear()
    with pytest.warns(UserWarning, match="takes no block mask"):
        add_terms(config, base.model, terms)
    assert seen == [1, 1, 1]


def test_a_batch_is_packed_when_asked_for_and_the_same_every_time(tokenizer, triplets):
    preferences = [encode_triplet(tokenizer, t, words=True) for t in triplets]
    batches = Batches(Config(batch_size=6, contrast=1.0, anchor=1.0), preferences)
    assert len(batches) == len(list(batches)) == 3
    once, again = batches[1], batches[1]
    assert once is not again
    assert once.preferences == again.preferences
    for kind in ("rows", "sentences"):
        tokens = [[row.row.tokens for row in getattr(batch, kind)] for batch in (once, again)]
        assert tokens[0] == tokens[1] != []
    with pytest.raises(IndexError):
        batches[3]


def test_equal_texts_of_a_batch_have_one_number(tokenizer):
    triplets = [Triplet("A dog runs.", "An animal runs.", "A dog sleeps.", 1), Triplet("A dog runs.", "X.", "Y.", 2)]
    config = Config(batch_size=2, contrast=1.0)
    (batch,) = Batches(config, [encode_triplet(tokenizer, t, words=True) for t in triplets])
    assert batch.texts.shape == (3, 2)
    assert batch.texts[0, 0] == batch.texts[0, 1]
    assert len(batch.texts.unique()) == 5


def test_sparse_codes_lose_less_of_the_embedding_after_training_for_them(setting, tmp_path):
    """Beside the same contrast, with and without the weight: it is the weight that helps the code."""
    shared = {
        "objective": "none",
        "anchor": 0.0,
        "contrast": 1.0,
        "sparse_tokens": 8,
        "epochs": 6.0,
        "lora_dropout": 0.0,
    }
    losses = {}
    for weight in (1e-9, 5.0):
        setting(str(weight), sparse=weight, **shared)
        records = [r for r in read_metrics(tmp_path / str(weight) / "metrics.jsonl") if "sparse_loss" in r]
        losses[weight] = records[-1]["sparse_loss"]
    assert losses[5.0] < 0.9 * losses[1e-9]


def test_sparse_codes_join_a_preference_objective_without_contrast(setting, tmp_path):
    shared = {"objective": "dpo", "sparse_tokens": 8, "epochs": 6.0, "lora_dropout": 0.0}
    for weight in (1e-9, 5.0):
        setting(str(weight), sparse=weight, **shared)
    free, held = (
        [r for r in read_metrics(tmp_path / str(weight) / "metrics.jsonl") if "loss" in r] for weight in (1e-9, 5.0)
    )
    assert "contrast_loss" not in held[0]
    assert held[-1]["rewards/margins"] > 0
    assert held[0]["loss"] == pytest.approx(free[0]["loss"] + 5 * held[0]["sparse_loss"], rel=1e-5)
    assert held[-1]["sparse_loss"] < 0.9 * free[-1]["sparse_loss"]


def test_a_sparse_code_alone_embeds_the_sentences_alone(tokenizer, triplets):
    preferences = [encode_triplet(tokenizer, t, words=True) for t in triplets]
    for contrast, kinds in ((0.0, 1), (1.0, 3)):
        (batch,) = Batches(Config(batch_size=len(triplets), sparse=0.1, contrast=contrast), preferences)
        assert batch.texts.shape == (kinds, len(triplets))
        assert sum(len(row.members) for row in batch.sentences) == kinds * len(triplets)


SAME = [Triplet("A man pets a dog.", f"A man pets {i} dogs.", f"{i} cats sleep.", i) for i in range(8)]


@pytest.mark.parametrize("triplets", [SAME], ids=["one prompt"])
def test_rows_of_one_prompt_have_no_geometry_and_train_without_it(setting, tmp_path):
    """Rounding apart, their states are one point, which no direction leads away from."""
    without = {"objective": "dpo", "epochs": 1.0, "lora_dropout": 0.0}
    plain, _ = setting("plain", **without)
    both, _ = setting("both", **without, uniformity=0.5, isotropy=0.5)
    assert all(torch.equal(a, b) for a, b in zip(weights(plain).values(), weights(both).values(), strict=True))


def test_a_prompt_that_comes_twice_counts_once_in_the_geometry(tokenizer, triplets):
    preferences = [encode_triplet(tokenizer, t) for t in (*triplets[:3], *SAME[:2], triplets[1])]
    (row,) = pack_preferences(preferences, range(6), 1 << 20)
    assert len(row.lengths) == 6
    ends = [row.row.tokens[: end + 1] for end in row.prompt_ends.tolist()]
    # The first triplet's sentence is that of SAME, too.
    assert triplets[0].sentence == SAME[0].sentence
    assert len(ends) == 3
    positions = [row.row.positions[end] for end in row.prompt_ends.tolist()]
    lengths = {len(preference.prompt) - 1 for preference in preferences}
    assert set(positions) == lengths
