"""Training for sparse codes: its losses are those of plain forward passes, they fall, and the rest is the loop's."""

import dataclasses

import pytest
import torch
import yaml
from conftest import SETTINGS, adapt, weights
from spod_train import Weights, last_states, main, sparse_loss, spread_loss, train_spod

from sempa import SempaError
from sempa.batching.prompts import encode_one_word, encode_triplet
from sempa.config import Config
from sempa.io.streams import exit_code
from sempa.kernels import token_directions
from sempa.losses import isotropy_loss, spod_loss, uniformity_loss
from sempa.model.adapter_files import adapter_readout, read_adapter
from sempa.model.base import load_base
from sempa.model.lora import add_lora, lora_parameters
from sempa.training.loop import train

SENTENCES = ["A man pets a dog.", "A woman ignores the cat.", "The horse is petted by a girl.", "A man pets a dog."]


@pytest.fixture
def start(tiny_folder, triplets):
    """A base with a fresh adapter, preferences, and the config of a whole-batch DPO run."""

    def make(**changes):
        settings = SETTINGS | {"anchor": 0.0, "lora_dropout": 0.0, "epochs": 1.0} | changes
        config = Config(model=str(tiny_folder), dtype="float32", device="cpu", **settings)
        base = load_base(config.model, config.dtype, config.device)
        add_lora(base.model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.seed)
        return config, base, [encode_triplet(base.tokenizer, t, one_word=config.contrast > 0) for t in triplets]

    return make


def test_both_losses_and_their_gradients_are_those_of_separate_forward_passes(tiny_llama, tokenizer):
    from sempa.model.base import BaseModel

    base, config = BaseModel(adapt(tiny_llama, 0.3), tokenizer, "tiny"), Config(row_tokens=64)
    parameters = list(lora_parameters(base.model).values())
    chosen = Weights(sparse=0.3, tokens=7, uniformity=0.5, isotropy=0.2)
    prompts = encode_one_word(tokenizer, SENTENCES)
    directions = token_directions(base.model.get_output_embeddings().weight)
    # One prompt after another through the model itself; equal prompts once where they are to be spread.
    alone = [base.model.base_model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in prompts]
    reconstruction, rest = spod_loss(torch.stack(alone), directions, 7)
    spread = 0.5 * uniformity_loss(torch.stack(alone[:3])) + 0.2 * isotropy_loss(torch.stack(alone[:3]))
    for (found, metrics), expected in (
        (sparse_loss(config, chosen, base, prompts, directions), 0.3 * (reconstruction + rest).mean()),
        (spread_loss(config, chosen, base, prompts), spread),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert metrics["loss"] == pytest.approx(found.item())
        for mine, other in zip(*(torch.autograd.grad(x, parameters, retain_graph=True) for x in (found, expected))):
            assert (mine - other).norm() <= 1e-3 * other.norm() + 1e-6
    assert len(last_states(config, base, prompts)) == 4
    # Two prompts are too few to be spread.
    assert spread_loss(config, chosen, base, prompts[:2])[0] == 0


def test_the_codes_become_more_faithful_and_the_prompts_spread(start):
    for changed, name in ((Weights(sparse=1.0, tokens=4), "sparse_loss"), (Weights(0.0, 4, 1.0, 1.0), "spread_loss")):
        config, base, preferences = start(epochs=6.0, preference=0.0)
        steps = train_spod(config, changed, base, preferences)
        assert len(steps) == 24
        assert sum(step[name] for step in steps[-4:]) < 0.9 * sum(step[name] for step in steps[:4])


def test_without_additional_losses_it_is_the_packages_loop(start, tmp_path):
    config, base, preferences = start(contrast=1.0)
    train_spod(config, Weights(sparse=0.0), base, preferences)
    _, other, _ = start()
    train(config, other, preferences, tmp_path, lambda: 0.0)
    mine, theirs = weights(base), weights(other)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_dropout_is_active_and_follows_the_seed(start):
    trained = []
    for dropout in (0.3, 0.3, 0.0):
        config, base, preferences = start(lora_dropout=dropout)
        train_spod(config, Weights(tokens=4), base, preferences)
        trained.append(weights(base))
    first, again, without = trained
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], without[name]) for name in first)


def test_the_samples_of_the_base_are_taken_in_turn(start, monkeypatch):
    seen = []
    monkeypatch.setattr("spod_train.base_samples", lambda base: ["first", "second", "third"])
    monkeypatch.setattr("spod_train.spod_step", lambda *arguments: seen.append(arguments[-1]))
    config, base, preferences = start(retention=1.0)
    train_spod(config, Weights(tokens=4), base, preferences)
    assert seen == ["first", "second", "third", "first"]


def test_the_script_saves_an_adapter(start, tmp_path, triplets_file, capsys):
    config, _, _ = start()
    values = dataclasses.asdict(config) | {"triplets": str(triplets_file), "output": str(tmp_path / "run")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    main([str(tmp_path / "config.yaml"), "held_out=0", "--tokens", "4", "epochs=0.5"])
    assert "step 2 loss" in capsys.readouterr().out
    described, tensors = read_adapter(tmp_path / "run" / "adapter")
    assert described["lora_alpha"] == config.lora_alpha
    assert adapter_readout(tmp_path / "run" / "adapter") == config.readout
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    assert described["base_model_name_or_path"] == config.model
    again = [str(tmp_path / "config.yaml"), "held_out=0", "--tokens", "4", "epochs=0.25", "seed=5"]
    assert exit_code("program", lambda: main(again)) == 2
    assert "adapter: exists already; give another output=…" in capsys.readouterr().err
    main([*again, "learning_rate=1e-12", f"output={tmp_path / 'again'}"])
    fresh = load_base(config.model, "float32", "cpu")
    add_lora(fresh.model, config.lora_rank, config.lora_alpha, seed=5)
    _, tensors = read_adapter(tmp_path / "again" / "adapter")
    for name, parameter in lora_parameters(fresh.model).items():
        torch.testing.assert_close(tensors[name], parameter.detach(), rtol=1e-6, atol=1e-8)
    capsys.readouterr()
    wrong = [str(tmp_path / "config.yaml"), "--tokens", "321", f"output={tmp_path / 'wrong'}"]
    assert exit_code("program", lambda: main(wrong)) == 2
    assert "tokens: found 321, expected 1 to the vocabulary's 320" in capsys.readouterr().err
    with pytest.raises(SempaError):
        train_spod(config, Weights(tokens=0), load_base(config.model, "float32", "cpu"), [])


def test_codes_are_of_one_word_prompts_and_the_spread_of_paraphrase_prompts_beside_retention(
    start, monkeypatch, few_samples
):
    seen = []

    def recorded(config, base, prompts):
        seen.append(sorted(map(list, prompts)))
        return last_states(config, base, prompts)

    monkeypatch.setattr("spod_train.last_states", recorded)
    config, base, preferences = start(retention=1.0, batch_size=16)
    (step,) = train_spod(config, Weights(tokens=4, uniformity=1.0), base, preferences)
    words, prompts = sorted(seen, key=lambda few: sum(map(len, few)))
    assert words == sorted(map(list, encode_one_word(base.tokenizer, [one.sentence for one in preferences])))
    assert prompts == sorted(map(list, {tuple(one.prompt) for one in preferences}))
    assert {"neutral_kl", "sparse_loss", "spread_loss"} <= {*step}


def test_a_diverged_step_is_one_sentence(start):
    config, base, preferences = start()
    with pytest.raises(SempaError, match="lower learning_rate"):
        train_spod(config, Weights(sparse=float("nan"), tokens=4), base, preferences)
