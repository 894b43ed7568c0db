"""The step's raw gradients against plain full-logits autograd, at a random adapter and with a truly frozen reference.

The oracle shares no code with the step: a second copy of the base with plain weights W + (α / r) B A, one conversation
at a time, no packing, `log_softmax` over whole logits, and every loss written out as in its paper.
"""

import itertools
import math
import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from sempa.batching.batches import Batch, make_batch
from sempa.batching.prompts import encode_triplet
from sempa.config import Config
from sempa.data.triplets import Triplet
from sempa.model.base import load_base
from sempa.model.lora import add_lora, lora_parameters
from sempa.training import base_samples, step

RANK, ALPHA = 3, 5.0
OFF = {"preference": 0.0, "anchor": 0.0, "contrast": 0.0, "retention": 0.0, "objective": "none"}
RANKING = OFF | {"objective": "dpo", "preference": 0.7, "preference_fraction": 0.75, "beta": 0.3}
CONTRAST = OFF | {"contrast": 0.6, "temperature": 0.2, "readout": "prompteol"}
RETENTION = OFF | {"retention": 4.0}
EVERYTHING = RANKING | {"anchor": 0.4, "contrast": 0.6, "temperature": 0.2, "retention": 4.0}
LOSSES = {
    "dpo": RANKING,
    "conservative-dpo": RANKING | {"objective": "conservative-dpo"},
    "ipo": RANKING | {"objective": "ipo"},
    "plackett-luce": RANKING | {"objective": "plackett-luce"},
    "plackett-luce-top1": RANKING | {"objective": "plackett-luce-top1"},
    "dpo with anchor": RANKING | {"anchor": 0.4},
    "anchor": OFF | {"anchor": 0.4},
    "contrast": CONTRAST,
    "contrast at the attention outputs": CONTRAST | {"readout": "attention-sum"},
    "retention": RETENTION,
    "everything": EVERYTHING,
}
TEXTS = [[5, 90, 31, 7], [200, 3], [17, 18, 19, 20, 21, 22, 23], [44, 45, 46], [260, 10, 5, 90, 31]]


def make_triplets():
    """Six of them; one sentence is also another's entailment, and one contradiction comes twice."""
    pets = [("man", "dog"), ("woman", "cat"), ("girl", "horse"), ("boy", "bird"), ("girl", "dog"), ("man", "cat")]
    texts = [
        [f"A {who} pets a {animal}.", f"The {animal} is petted by a {who}.", f"A {who} is there.", f"No {animal} here."]
        for who, animal in pets
    ]
    texts[5][0] = texts[2][1]
    return [Triplet(x, best, worst, i + 2, neutral) for i, (x, best, neutral, worst) in enumerate(texts)]


# The step


def make_config(losses, row_tokens):
    return Config(**losses, batch_size=6, row_tokens=row_tokens, lora_rank=RANK, lora_alpha=ALPHA)


@pytest.fixture
def base(tiny_folder):
    """The package's model with a random adapter that is nowhere zero."""
    base = load_base(str(tiny_folder), "float32", "cpu")
    add_lora(base.model, RANK, ALPHA)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(base.model).values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return base


def run_step(config, base, monkeypatch, change=lambda preference: preference):
    """The batch, the texts of its row of samples, and what `train_step` hands to AdamW: metrics and gradients."""
    ranking = config.objective.startswith("plackett-luce")
    preferences = [encode_triplet(base.tokenizer, t, ranking=ranking, one_word=True) for t in make_triplets()]
    batch = make_batch(config, preferences, 0)
    seen = make_batch(config, [change(preference) for preference in preferences], 0)
    samples, texts = [], []
    if config.retention:
        monkeypatch.setattr(base_samples, "sample_texts", lambda *_: TEXTS)
        monkeypatch.setattr(base_samples, "ROW_TOKENS", config.row_tokens)
        samples = base_samples.base_samples(base)
        row = samples[1 % len(samples)].packed
        for _, tokens in itertools.groupby(zip(row.segments, row.tokens), lambda pair: pair[0]):
            texts.append([token for _, token in tokens])
    monkeypatch.setattr(step, "MAX_GRAD_NORM", float("inf"))
    parameters, gradients = lora_parameters(base.model), {}
    optimizer = torch.optim.SGD(parameters.values())
    monkeypatch.setattr(optimizer, "step", lambda: gradients.update({n: p.grad for n, p in parameters.items()}))
    metrics = step.train_step(config, base.model, optimizer, seen, samples, 1, 10)
    return batch, texts, metrics, gradients


# The oracle


def in_float64(model):
    """The model in float64 throughout: transformers' own norm rounds to float32."""
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model.double()


class Oracle:
    """A policy and its reference in float64, each as one plain forward pass a sequence."""

    def __init__(self, folder, adapter):
        self.model = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
        in_float64(self.model).eval()
        self.adapter = {name: value.detach().double().requires_grad_() for name, value in adapter.items()}
        self.weights = {}
        for name, A in self.adapter.items():
            if name.endswith("lora_A.weight"):
                layer = name.removeprefix("base_model.model.").removesuffix("lora_A.weight") + "weight"
                B = self.adapter[name.replace("lora_A", "lora_B")]
                self.weights[layer] = self.model.get_parameter(layer) + ALPHA / RANK * B @ A

    def policy(self, ids):
        """Log-probabilities of the next token `[length, V]` and last hidden states `[length, D]`."""
        out = functional_call(self.model, self.weights, (torch.tensor([list(ids)]),), {"output_hidden_states": True})
        return out.logits[0].log_softmax(-1), out.hidden_states[-1][0]

    def embedding(self, ids, readout):
        """`[D]`: the last hidden state, or what the last token's attention adds to the residual in all blocks."""
        if readout == "prompteol":
            return self.policy(ids)[1][-1]
        outputs = []
        hooks = [
            block.self_attn.o_proj.register_forward_hook(lambda _, __, output: outputs.append(output[0, -1]))
            for block in self.model.model.layers
        ]
        self.policy(ids)
        for hook in hooks:
            hook.remove()
        return sum(outputs)

    @torch.no_grad()
    def reference(self, ids):
        return self.model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)

    def gradients(self, loss):
        found = torch.autograd.grad(loss, self.adapter.values(), allow_unused=True)
        return dict(zip(self.adapter, found, strict=True))


def of_tokens(logprobs, prompt, response):
    """log π(y_t | x, y_<t) of each token of a response."""
    return torch.stack([logprobs[len(prompt) + t - 1, token] for t, token in enumerate(response)])


def ranking_loss(config, rewards):
    """Of one example's implicit rewards, best first."""
    margin = rewards[0] - rewards[-1]
    match config.objective:
        case "dpo":
            return -margin.sigmoid().log()
        case "conservative-dpo":
            return -0.9 * margin.sigmoid().log() - 0.1 * (-margin).sigmoid().log()
        case "ipo":
            return (margin / config.beta - 1 / (2 * config.beta)) ** 2
        case "plackett-luce":
            return rewards.logsumexp(0) - rewards[0] + rewards[1:].logsumexp(0) - rewards[1]
        case "plackett-luce-top1":
            return rewards.logsumexp(0) - rewards[0]
        case "none":
            return 0.0


def expected_preference(config, oracle, preferences):
    total = 0.0
    for preference in preferences:
        prompt, policy, reference = list(preference.prompt), [], []
        for response in preference.responses:
            ids = [*prompt, *response]
            policy.append(of_tokens(oracle.policy(ids)[0], prompt, response))
            reference.append(of_tokens(oracle.reference(ids), prompt, response))
        rewards = torch.stack([config.beta * (p.sum() - r.sum()) for p, r in zip(policy, reference)])
        answer = policy[0][: len(policy[0]) - preference.closing]
        total += config.preference * ranking_loss(config, rewards) - config.anchor * answer.mean()
    return total / len(preferences)


def expected_contrast(config, oracle, preferences):
    kinds = [[list(preference.one_word[k]) for preference in preferences] for k in (0, 1, -1)]
    texts, n = [text for kind in kinds for text in kind], len(preferences)
    states = [oracle.embedding(text, config.readout) for text in texts]

    def pick(query, answer, candidates):
        scores = {c: torch.cosine_similarity(states[query], states[c], dim=0) / config.temperature for c in candidates}
        return torch.stack(list(scores.values())).logsumexp(0) - scores[answer]

    losses = []
    for i in range(n):
        others = [c for c in range(3 * n) if texts[c] not in (texts[i], texts[n + i])]
        losses += [pick(i, n + i, [n + i, *others]) / 2, pick(n + i, i, [i, *others]) / 2]
    return config.contrast * sum(losses) / n


def expected_retention(config, oracle, texts):
    divergences = []
    for ids in texts:
        base, policy = oracle.reference(ids), oracle.policy(ids)[0]
        divergences.append((base.exp() * (base - policy)).sum(-1))
    return config.retention * torch.cat(divergences).mean()


def expected_gradients(config, oracle, batch: Batch, texts):
    loss = torch.zeros((), dtype=torch.float64)
    if config.objective != "none" or config.anchor:
        ranked = math.ceil(config.preference_fraction * len(batch.preferences))
        loss = loss + expected_preference(config, oracle, batch.preferences[:ranked])
    if config.contrast:
        loss = loss + expected_contrast(config, oracle, batch.preferences)
    if config.retention:
        loss = loss + expected_retention(config, oracle, texts)
    return loss.item(), oracle.gradients(loss)


def discrepancy(found, expected):
    """The largest difference of any tensor, as a part of that tensor's largest number."""
    # Behind the last attention no weight counts for a sum of attention outputs.
    reached = {name: wanted for name, wanted in expected.items() if wanted is not None}
    assert not any(found[name].any() for name in expected.keys() - reached.keys())
    return max(
        (found[name].double() - wanted).abs().max().item() / wanted.abs().max().item()
        for name, wanted in reached.items()
    )


def compare(config, base, folder, monkeypatch, **options):
    """Relative differences of the step's loss and of its gradients from the oracle's."""
    batch, texts, metrics, found = run_step(config, base, monkeypatch, **options)
    loss, expected = expected_gradients(config, Oracle(folder, lora_parameters(base.model)), batch, texts)
    return abs(metrics["loss"] / loss - 1), discrepancy(found, expected)


# Of 130 tokens a row holds a few examples, of 4,000 all of them.
@pytest.mark.parametrize("row_tokens", [4000, 130])
@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES.keys())
def test_gradients_are_those_of_plain_autograd(losses, row_tokens, base, tiny_folder, monkeypatch):
    config = make_config(losses, row_tokens)
    loss, gradients = compare(config, base, tiny_folder, monkeypatch)
    assert loss < 1e-4 and gradients < 1e-4
    in_float64(base.model)
    loss, gradients = compare(config, base, tiny_folder, monkeypatch)
    assert loss < 1e-9 and gradients < 1e-9


def test_the_rows_of_a_step_are_one_or_several(base):
    preferences = [encode_triplet(base.tokenizer, triplet, one_word=True) for triplet in make_triplets()]
    for row_tokens, several in ((4000, False), (130, True)):
        batch = make_batch(make_config(EVERYTHING, row_tokens), preferences, 0)
        assert (len(batch.preference_rows) > 1, len(batch.sentence_rows) > 1) == (several, several)


def test_gradients_of_losses_side_by_side_are_those_of_plain_autograd(base, tiny_folder, monkeypatch):
    names, row_states = set(), step.row_states

    def in_a_thread(model, row):
        names.add(threading.current_thread().name)
        return row_states(model, row)

    monkeypatch.setattr(step, "row_states", in_a_thread)
    in_float64(base.model)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        loss, gradients = compare(make_config(EVERYTHING, 130), base, tiny_folder, monkeypatch)
    finally:
        torch.set_num_threads(before)
    assert names and all(name.startswith("sempa") for name in names)
    assert loss < 1e-9 and gradients < 1e-9


# Faults of the step, each of which the comparison must see.
WRONG_CONFIGS = {
    "another beta": {"beta": 0.31},
    "preference not weighted": {"preference": 1.0},
    "no preference": {"preference": 0.0},
    "no anchor": {"anchor": 0.0},
    "contrast not weighted": {"contrast": 1.0},
    "another temperature": {"temperature": 0.21},
    "another readout": {"readout": "prompteol"},
    "retention not weighted": {"retention": 1.0},
    "every example ranked": {"preference_fraction": 1.0},
}
WRONG_DATA = {
    "swapped pair": lambda preference: replace(preference, responses=preference.responses[::-1]),
    "swapped one-word prompts": lambda preference: replace(preference, one_word=preference.one_word[::-1]),
    "the end of turn in the anchor": lambda preference: replace(preference, closing=0),
    "the end of turn left out": lambda preference: replace(
        preference, responses=tuple(r[: -preference.closing] for r in preference.responses), closing=0
    ),
}


@pytest.fixture
def differences(base, tiny_folder, monkeypatch):
    """The relative difference of a faulty step's gradients from the oracle's, in float64."""
    in_float64(base.model)
    config = make_config(EVERYTHING, 130)

    def start(**faults):
        batch, texts, _, found = run_step(faults.pop("config", config), base, monkeypatch, **faults)
        oracle = Oracle(tiny_folder, lora_parameters(base.model))
        return discrepancy(found, expected_gradients(config, oracle, batch, texts)[1])

    return start


@pytest.mark.parametrize("fault", WRONG_CONFIGS.values(), ids=WRONG_CONFIGS.keys())
def test_a_wrong_constant_is_seen(fault, differences):
    assert differences(config=replace(make_config(EVERYTHING, 130), **fault)) > 1e-3


@pytest.mark.parametrize("fault", WRONG_DATA.values(), ids=WRONG_DATA.keys())
def test_wrong_data_is_seen(fault, differences):
    assert differences(change=fault) > 1e-3


@pytest.mark.parametrize("module", [step, base_samples], ids=["preference", "retention"])
def test_a_reference_that_is_the_policy_is_seen(module, differences, monkeypatch):
    monkeypatch.setattr(module, "adapter_disabled", nullcontext)
    assert differences() > 1e-3


def test_a_mean_over_the_whole_batch_is_seen(differences, monkeypatch):
    monkeypatch.setattr(Batch, "ranked", property(lambda batch: len(batch.preferences)))
    assert differences() > 1e-3
