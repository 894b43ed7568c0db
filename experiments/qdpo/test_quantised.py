"""Rounding within its bound and only once; flips and pairs where two models part; training that brings answers back."""

import math

import pytest
import torch
from conftest import make_llama
from hypothesis import given
from hypothesis import strategies as st
from quantised import GROUPS, align_quantised, diverging_pairs, flip_rate, quantise, quantise_model
from transformers import GPT2Config, GPT2LMHeadModel

from sempa import SempaError
from sempa.batching.packing import pack_preferences
from sempa.batching.prompts import Preference, encode_texts, render_prompt
from sempa.model.base import load_base
from sempa.model.logprobs import sequence_logprobs
from sempa.model.lora import add_lora, block_linears, lora_parameters
from sempa.model.sampling import Sample, sample

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 200))


def normal(shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Rounding


@given(shape=SHAPES, bits=st.sampled_from([4, 8]), seed=st.integers(0, 99), power=st.integers(-30, 30))
def test_no_element_is_off_by_more_than_half_its_scale(shape, bits, seed, power):
    weight = normal(shape, seed, 2.0**power)
    rounded, scales = quantise(weight, bits)
    assert rounded.shape == scales.shape == weight.shape
    assert ((rounded - weight).abs() <= 0.5 * scales * (1 + 1e-6)).all()
    # The largest of a group is a whole level, and there are no more levels than the bits tell apart.
    levels = rounded / scales
    assert torch.equal(levels, levels.round())
    assert levels.abs().max() == 2 ** (bits - 1) - 1


@given(shape=SHAPES, bits=st.sampled_from([4, 8]), seed=st.integers(0, 99), power=st.integers(-30, 30))
def test_rounding_twice_is_rounding_once_to_the_bit(shape, bits, seed, power):
    once, scales = quantise(normal(shape, seed, 2.0**power), bits)
    twice, same = quantise(once, bits)
    assert torch.equal(once, twice)
    assert torch.equal(scales, same)


def test_a_scale_belongs_to_an_output_channel_or_to_64_neighbours_of_one():
    weight = normal((3, 150))
    weight[1] *= 100
    weight[2, 64:128] *= 100
    for bits, groups in ((8, [150]), (4, [64, 64, 22])):
        _, scales = quantise(weight, bits)
        for row in range(3):
            for part, scale in zip(weight[row].split(groups), scales[row].split(groups), strict=True):
                assert scale.unique().numel() == 1
                assert scale[0].item() == pytest.approx(part.abs().max().item() / (2 ** (bits - 1) - 1), rel=2**-8)


def test_a_group_of_zeros_stays_zero_and_a_row_of_whole_levels_is_kept():
    weight = torch.zeros(2, 130)
    weight[1] = torch.arange(130) % 15 - 7.0
    for bits in (4, 8):
        rounded, _ = quantise(weight, bits)
        assert torch.equal(rounded[0], torch.zeros(130))
    # Both full groups reach from −7 to 7: their scale is 1.
    rounded, scales = quantise(weight, 4)
    assert torch.equal(rounded[1, :128], weight[1, :128])
    assert scales[1, :128].unique().tolist() == [1]


@pytest.mark.parametrize(
    ("weight", "bits", "message"),
    [
        (torch.ones(2, 2), 3, "bits: found 3, expected one of 8, 4"),
        (torch.ones(2, 2).bfloat16(), 8, r"weight: found torch.bfloat16 \(2, 2\), expected a torch.float32 matrix"),
        (torch.ones(2), 8, r"found torch.float32 \(2,\)"),
    ],
)
def test_what_cannot_be_quantised_is_refused(weight, bits, message):
    with pytest.raises(SempaError, match=message):
        quantise(weight, bits)


@pytest.mark.parametrize("bits", GROUPS)
def test_the_blocks_linear_layers_are_rounded_and_nothing_else(bits):
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=64, n_embd=72, n_layer=2, n_head=4))
    for model in (make_llama(), gpt2):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        quantise_model(model, bits)
        rounded = {f"{name}.weight" for name in block_linears(model)}
        assert len(rounded) >= 8
        for name, parameter in model.named_parameters():
            expected = before[name]
            if name in rounded:
                # GPT-2 keeps its weights transposed: an output channel is a column there.
                expected = quantise(expected.T, bits)[0].T if model is gpt2 else quantise(expected, bits)[0]
                assert not torch.equal(expected, before[name])
            assert torch.equal(parameter, expected), name


# Flips and pairs


def answer(*tokens):
    return Sample(list(tokens), torch.zeros(len(tokens)), "", True)


def test_a_pair_begins_where_the_answers_part_and_prefers_the_full_precision_one():
    prompts = [[1, 2], [3], [4, 5]]
    full = [answer(10, 11, 12, 9), answer(20, 9), answer(30, 31)]
    quantised = [answer(10, 11, 13, 14, 9), answer(20, 9), answer(40, 31)]
    first, second = diverging_pairs(prompts, full, quantised)
    assert (first.prompt, first.responses, first.line) == ([1, 2, 10, 11], ([12, 9], [13, 14, 9]), 1)
    assert (second.prompt, second.responses, second.line) == ([4, 5], ([30, 31], [40, 31]), 3)
    (cut,) = diverging_pairs([[1]], [answer(7, 8)], [answer(7)])
    assert (cut.prompt, cut.responses) == ([1], ([7, 8], [7]))


@pytest.fixture
def models(tiny_folder):
    """The tiny model, and a coarsely rounded copy that flips some of its tokens."""
    full, rounded = (load_base(str(tiny_folder), "float32", "cpu") for _ in range(2))
    quantise_model(rounded.model, 4)
    return full, rounded


@pytest.fixture
def prompts(tokenizer):
    questions = [
        f"What does the {animal} do to the {person}?" for animal in ("dog", "cat") for person in ("man", "boy")
    ]
    return encode_texts(tokenizer, [render_prompt(tokenizer, text) for text in questions])


def greedy(base, prompts):
    return [few[0] for few in sample(base, prompts, 1, 12, temperature=0)]


def test_flips_are_those_of_a_loop_over_tokens_and_none_for_the_model_itself(models, prompts):
    full, rounded = models
    answers = greedy(full, prompts)
    assert flip_rate(full.model, prompts, answers) == 0
    flips = []
    for prompt, answer in zip(prompts, answers, strict=True):
        for place, token in enumerate(answer.tokens):
            with torch.no_grad():
                logits = rounded.model(torch.tensor([prompt + answer.tokens[:place]])).logits[0, -1]
            flips.append(logits.argmax().item() != token)
    assert 0 < sum(flips) < len(flips)
    assert flip_rate(rounded.model, prompts, answers) == pytest.approx(sum(flips) / len(flips))
    with pytest.raises(SempaError, match="flip rate of no answers"):
        flip_rate(full.model, [], [])


def test_the_shared_beginning_makes_no_difference_to_the_log_ratio(models, prompts):
    full, rounded = models
    answers, others = greedy(full, prompts), greedy(rounded, prompts)
    pairs = diverging_pairs(prompts, answers, others)
    assert pairs
    assert any(len(pair.prompt) > len(prompts[pair.line - 1]) for pair in pairs)
    for pair in pairs:
        whole = type(pair)(prompts[pair.line - 1], (answers[pair.line - 1].tokens, others[pair.line - 1].tokens))
        margins = []
        for one in (pair, whole):
            (row,) = pack_preferences([one], 1024)
            with torch.no_grad():
                ratios = sequence_logprobs(rounded.model, row) - sequence_logprobs(full.model, row)
            margins.append((ratios[0, 0] - ratios[0, 1]).item())
        assert margins[0] == pytest.approx(margins[1], abs=1e-4)


def test_alignment_starts_at_the_cost_of_rounding_and_brings_the_answers_back(models, prompts):
    full, rounded = models
    answers = greedy(full, prompts)
    pairs = diverging_pairs(prompts, answers, greedy(rounded, prompts))
    before = flip_rate(rounded.model, prompts, answers)
    with torch.no_grad():
        margins = []
        for pair in pairs:
            (row,) = pack_preferences([pair], 1024)
            ratios = (sequence_logprobs(rounded.model, row) - sequence_logprobs(full.model, row))[0]
            margins.append((ratios[0] - ratios[1]).item())
    add_lora(rounded.model, 4, 16)
    steps = align_quantised(rounded.model, full.model, pairs, learning_rate=5e-3, epochs=20, batch_size=8)
    assert len(steps) == 20
    # Before the first step the adapter is zero: the margin is the cost of rounding alone.
    assert steps[0]["rewards/margins"] == pytest.approx(0.1 * sum(margins) / len(margins), abs=1e-4)
    losses = [math.log1p(math.exp(-0.1 * margin)) for margin in margins]
    assert steps[0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert steps[0]["rewards/accuracies"] == sum(margin > 0 for margin in margins) / len(margins)
    assert steps[0]["rewards/margins"] < 0 < steps[-1]["rewards/margins"]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert flip_rate(rounded.model, prompts, answers) < before


def test_pairs_come_shuffled_and_the_rate_of_adamw_warms_up_and_falls_under_a_clipped_gradient(models, monkeypatch):
    full, rounded = models
    add_lora(rounded.model, 4, 16)
    pairs = [Preference([5, 9, 200, 31], ([8, 77 + i], [12 + i, 14]), line=i) for i in range(6)]
    taken, taken_by_adamw = [], []
    monkeypatch.setattr("quantised.pack_preferences", lambda few, _: taken.extend(few) or pack_preferences(few, 512))

    class Recorded(torch.optim.AdamW):
        def step(self, closure=None):
            (group,) = self.param_groups
            norm = torch.cat([parameter.grad.flatten() for parameter in group["params"]]).norm().item()
            taken_by_adamw.append((group["lr"], group["weight_decay"], norm))
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    steps = align_quantised(rounded.model, full.model, pairs, beta=100.0, learning_rate=1e-3, batch_size=1, epochs=2.1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0)).tolist()
    assert [pair.line for pair in taken] == [*order, *order, order[0]]
    assert len(steps) == 13
    rates, decays, norms = zip(*taken_by_adamw)
    assert rates == pytest.approx([1e-3, *(1e-3 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12))])
    assert set(decays) == {0.0}
    assert max(norms) == pytest.approx(1.0, rel=1e-3)
    assert not [name for name, parameter in lora_parameters(rounded.model).items() if parameter.grad is not None]


def test_models_with_the_same_answers_leave_nothing_to_align(models):
    full, rounded = models
    with pytest.raises(SempaError, match="answers are all the same, so there is nothing to align"):
        align_quantised(rounded.model, full.model, [])
