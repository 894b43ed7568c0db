"""Online preferences are the judge's and follow from the seed; a step on them moves the policy as the judge prefers."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import SETTINGS, weights
from mixture import sample_mixture
from online import ALONE, HERE, METHODS, RECIPE, sample_preferences, similarity_judge, train_online

from sempa import SempaError
from sempa.batching.packing import pack_preferences
from sempa.batching.prompts import encode_triplet
from sempa.config import Config, load_config
from sempa.embedding.embed import embed
from sempa.model.base import load_base
from sempa.model.logprobs import sequence_logprobs
from sempa.model.lora import adapter_disabled, add_lora
from sempa.model.sampling import Sample, end_tokens


def longest(sentences, candidates):
    return np.array([[len(text) for text in pair] for pair in candidates], dtype=float)


@pytest.fixture
def base(tiny_folder):
    found = load_base(str(tiny_folder), "float32", "cpu")
    add_lora(found.model, 2, 32.0)
    return found


@pytest.fixture
def preferences(tokenizer, triplets):
    return [encode_triplet(tokenizer, triplet) for triplet in triplets]


@pytest.fixture
def config(tiny_folder):
    alone = {"objective": "ipo", "anchor": 0.0, "lora_dropout": 0.0, "batch_size": 16, "learning_rate": 1e-3}
    return Config(model=str(tiny_folder), dtype="float32", device="cpu", **SETTINGS | alone | {"epochs": 1.0})


def test_the_program_trains_as_its_page_says():
    config = load_config(RECIPE, ALONE)
    assert (config.batch_size, config.learning_rate, config.beta, config.anchor) == (8, 1e-3, 0.1, 1)


@pytest.mark.parametrize("fraction", METHODS.values())
def test_an_online_step_moves_towards_what_the_judge_prefers(base, config, preferences, fraction):
    """The pairs of the first step, drawn again, have a positive margin after it."""
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    # Before the first step policy, reference and their mixture are one.
    made = sample_preferences(base, [preferences[i] for i in order], longest, 0, fraction, 6)
    assert len(made) > 4
    (step,) = train_online(config, base, preferences, fraction, 6, longest)
    assert step["rewards/margins"] == pytest.approx(0, abs=1e-5)
    # IPO's loss of a margin of 0, (1 / 2β)², on as many pairs as were made.
    assert step["loss"] == pytest.approx((0.5 / config.beta) ** 2, rel=1e-4)
    (row,) = pack_preferences(made, 1 << 20)
    with torch.no_grad():
        policy = sequence_logprobs(base.model, row)
        with adapter_disabled(base.model):
            reference = sequence_logprobs(base.model, row)
    margins = (policy - reference)[:, 0] - (policy - reference)[:, 1]
    assert margins.mean() > 0
    assert step["logps/chosen"] == pytest.approx(reference[:, 0].mean().item(), rel=1e-4)
    assert (margins > 0).float().mean() > 0.6


def test_later_steps_sample_from_the_trained_policy(base, config, preferences, monkeypatch):
    import online

    seen = []
    real = online.sample_preferences
    monkeypatch.setattr(online, "sample_preferences", lambda *a: seen.append(real(*a)) or seen[-1])
    longer = dataclasses.replace(config, epochs=3.0, learning_rate=3e-2)
    assert len(train_online(longer, base, preferences, 0.0, 6, longest)) == 3
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    asked = [preferences[i] for i in order]
    with adapter_disabled(base.model):
        frozen = [real(base, asked, longest, step, 0.0, 6) for step in range(3)]
    assert seen[0] == frozen[0] and seen[2] != frozen[2]


@pytest.mark.parametrize("fraction", METHODS.values())
def test_sampled_preferences_are_the_judges_and_follow_from_the_seed(base, preferences, tokenizer, fraction):
    made = sample_preferences(base, preferences[:4], longest, 3, fraction, 6)
    assert made == sample_preferences(base, preferences[:4], longest, 3, fraction, 6)
    assert made != sample_preferences(base, preferences[:4], longest, 4, fraction, 6)
    for preference in made:
        # The judge reads answers without the token that ends them.
        answers = [ids[: len(ids) - (ids[-1] in end_tokens(base))] for ids in preference.responses]
        best, worst = (tokenizer.decode(ids, skip_special_tokens=True) for ids in answers)
        assert len(best.strip()) > len(worst.strip())
        assert preference.prompt in [other.prompt for other in preferences]
        assert max(map(len, preference.responses)) <= 6
    assert sample_preferences(base, preferences[:4], lambda s, _: np.ones((len(s), 2)), 3, fraction, 6) == []


def test_a_pair_is_of_two_texts_and_knows_whether_the_better_one_ended(base, preferences, monkeypatch):
    def answer(tokens, text, ended=False):
        return Sample(tokens, torch.zeros(len(tokens)), text, ended)

    drawn = [
        [answer([5, 9, 1], "a dog", True), answer([7], "c")],
        [answer([5, 9], "a dog"), answer([7, 1], "c", True)],
        [answer([1], "", True), answer([7], "c")],
        [answer([7], "c"), answer([7, 1], "c", True)],
    ]
    monkeypatch.setattr("online.sample", lambda *_, **__: drawn)
    made = sample_preferences(base, preferences[:4], longest, 0)
    assert [one.prompt for one in made] == [one.prompt for one in preferences[:2]]
    assert [(one.responses, one.closing) for one in made] == [(([5, 9, 1], [7]), 1), (([5, 9], [7, 1]), 0)]


def test_every_step_asks_for_its_share_of_the_batch_by_a_seed_of_its_own(
    base, config, preferences, monkeypatch, few_samples
):
    asked = []

    def none_made(base, preferences, judge, seed, *_):
        asked.append((len(preferences), seed))
        return []

    monkeypatch.setattr("online.sample_preferences", none_made)
    changed = dataclasses.replace(config, seed=2, epochs=2.0, preference_fraction=0.5, retention=1.0)
    steps = train_online(changed, base, preferences)
    assert asked == [(8, 2_000_006), (8, 2_000_007)]
    assert all("neutral_kl" in step for step in steps)


def test_a_step_without_a_preference_leaves_the_policy_alone(base, config, preferences):
    before = weights(base)
    (step,) = train_online(config, base, preferences, 0.0, 6, lambda s, _: np.ones((len(s), 2)))
    assert step["loss"] == 0
    assert all(torch.equal(before[name], after) for name, after in weights(base).items())


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        (lambda n: np.full((n, 2), np.nan), "scores that are not finite"),
        (lambda n: np.zeros(n), r"scores of shape \(\d+,\)"),
        (lambda n: np.zeros((n, 3)), r"scores of shape \(\d+, 3\)"),
    ],
)
def test_a_judge_without_scores_is_named(base, preferences, scores, found):
    with pytest.raises(SempaError, match=f"judge: found {found}, expected finite ones of shape"):
        sample_preferences(base, preferences[:4], lambda sentences, _: scores(len(sentences)), 3)


def test_the_default_judge_is_the_bases_own_similarity(base, triplets):
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    sentence, other = triplets[0].sentence, triplets[7].rejected
    found = similarity_judge(base)([sentence], [[sentence, other]])
    assert found.shape == (1, 2)
    assert found[0, 0] == pytest.approx(1.0, abs=1e-5)
    with adapter_disabled(base.model):
        one, two = embed(base, [sentence, other])
    assert found[0, 1] == pytest.approx(one @ two / np.linalg.norm(one) / np.linalg.norm(two), abs=1e-5)


def test_the_stored_figures_are_of_both_methods():
    stored = json.loads((HERE / "online.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in stored["rows"]] == list(METHODS)
    for row in (stored["base"], *stored["rows"]):
        assert row["average"] == pytest.approx(np.mean(list(row["sts"].values())))


@pytest.mark.parametrize("fraction", METHODS.values())
def test_pairs_are_sampled_from_the_methods_own_mixture(adapted_base, preferences, fraction):
    drawn = sample_mixture(adapted_base, [one.prompt for one in preferences], 2, 6, 3, fraction)
    expected = {tuple(one.prompt): {tuple(answer.tokens) for answer in pair} for one, pair in zip(preferences, drawn)}
    made = sample_preferences(adapted_base, preferences, longest, 3, fraction, 6)
    assert len(made) > 4
    for one in made:
        assert {*map(tuple, one.responses)} == expected[tuple(one.prompt)]
