"""Two processes train what one trains: the same loss curve and adapter to rounding, the same checkpoints."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sempa.model.lora import read_adapter
from sempa.training.metrics import read_metrics
from sempa.training.processes import World, gather_rows, join_world, merge_known, passes, share

SETTINGS = (
    "dtype: float32\ndevice: cpu\nheld_out: 0\nepochs: 2\nbatch_size: 8\nrow_tokens: 256\neval_every: 2\nlora_rank: 2\n"
    "dev_pairs: 10\nbuiltin_pairs: 10\ngeneration_tokens: 0\nlora_dropout: 0.2\nlearning_rate: 0.01\n"
)


def start(config, run, cache, processes):
    """Start `sempa train` in so many processes; without a config the run is resumed."""
    told = ["--resume", str(run)] if config is None else [str(config), f"output={run}"]
    return torchrun([sys.executable, "-m", "sempa", "train", *told], processes, {"SEMPA_CACHE": str(cache)})


def torchrun(command, processes, variables):
    """Start a command in so many processes, as torchrun does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    if processes > 1:
        environment |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            command,
            env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def finish(started):
    for process in started:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-2000:]


@pytest.mark.parametrize("dropout", ["0.2", "0.0"])
@pytest.mark.parametrize("terms", ["", "contrast: 1.0\ncontrast_candidates: all\nretention: 2.0\n"])
def test_two_processes_follow_the_loss_curve_of_one(tiny_folder, triplets_file, tmp_path, terms, dropout):
    """With dropout every row runs alone, without it a step's terms run side by side."""
    config = tmp_path / "config.yaml"
    settings = SETTINGS.replace("lora_dropout: 0.2", f"lora_dropout: {dropout}")
    config.write_text(
        f"model: {tiny_folder}\ntriplets: {triplets_file}\n{settings}objective: dpo\n{terms}neutral_tokens: 64\n"
    )
    for processes in (1, 2):
        # A cache each: the second must not read what the first has computed.
        finish(start(config, tmp_path / str(processes), tmp_path / f"cache{processes}", processes))
    assert_alike(tmp_path / "1", tmp_path / "2")


def assert_alike(run, other):
    one, two = ([r for r in read_metrics(folder / "metrics.jsonl") if "loss" in r] for folder in (run, other))
    assert len(one) == len(two) == 4
    for first, second in zip(one, two, strict=True):
        for name in first.keys() - {"triplets_per_second"}:
            assert second[name] == pytest.approx(first[name], rel=2e-3, abs=2e-5), name
    adapters = [read_adapter(folder / "adapter")[1] for folder in (run, other)]
    for name, tensor in adapters[0].items():
        # Adam's first steps are lr · sign(g): entries whose gradient is rounding noise may differ.
        close = torch.isclose(adapters[1][name], tensor, rtol=1e-2, atol=1e-4).float().mean()
        assert close > 0.98, name


def test_a_sharded_base_follows_the_same_curve_and_its_checkpoints_know_nothing_of_it(
    tiny_folder, triplets_file, tmp_path
):
    """Rows do not come out even between two processes, so that one must fill up; evaluation and sampling take part."""
    config = tmp_path / "config.yaml"
    terms = "row_tokens: 128\ncontrast: 1.0\nretention: 2.0\nneutral_tokens: 64\ngeneration_tokens: 2\nshard: true\n"
    settings = SETTINGS.replace("row_tokens: 256\n", "").replace("generation_tokens: 0\n", "")
    config.write_text(f"model: {tiny_folder}\ntriplets: {triplets_file}\n{settings}{terms}")
    finish(start(config, tmp_path / "1", tmp_path / "cache1", 1))
    # Neutral text takes long to sample token by token; the reference's log-probabilities are computed again.
    shutil.copytree(tmp_path / "cache1" / "neutral", tmp_path / "cache2" / "neutral")
    finish(start(config, tmp_path / "2", tmp_path / "cache2", 2))
    assert_alike(tmp_path / "1", tmp_path / "2")
    for name, processes in (("1", 2), ("2", 1)):
        # Back to half-way, and on in the other way.
        again = shutil.copytree(tmp_path / name, tmp_path / f"{name}-again")
        shutil.rmtree(again / "checkpoints" / "step-000004")
        (again / "report.json").unlink()
        finish(start(None, again, tmp_path / f"cache{processes}", processes))
        assert (again / "report.json").is_file()
        assert_alike(tmp_path / name, again)


def test_of_a_sharded_base_each_process_keeps_its_share(tmp_path):
    """Two processes by hand: the same gradients as whole, of half the blocks' parameters, after inference mode, too."""
    script = tmp_path / "share.py"
    script.write_text(SHARE.format(tests=str(Path(__file__).parent)))
    started = torchrun([sys.executable, str(script)], 2, {})
    finish(started)


SHARE = """
import sys

import torch
import torch.distributed as dist

sys.path.insert(0, {tests!r})
from conftest import adapt, make_llama
from sempa.model.lora import lora_parameters
from sempa.model.base import BaseModel, hidden_states, weights_fingerprint
from sempa.training.sharding import shard_base


def gradients(model):
    tokens = torch.arange(8)[None] + dist.get_rank()
    # Two passes before one backward, as contrast makes them.
    sum(hidden_states(model, part).square().sum() for part in (tokens, tokens[:, :5])).backward()
    return {{name: p.grad.clone() for name, p in lora_parameters(model).items()}}


def count(model):
    whole = model.get_input_embeddings().weight.numel() + model.get_output_embeddings().weight.numel()
    base = [p for name, p in model.named_parameters() if "lora" not in name]
    local = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in base)
    return local - whole - model.config.hidden_size


class Tokenizer:
    chat_template = None

    def get_vocab(self):
        return {{}}


dist.init_process_group("gloo")
plain, shared = (adapt(make_llama().requires_grad_(False), 0.1) for _ in range(2))
shard_base(shared, "cpu")
assert count(shared) == count(plain) / 2, (count(shared), count(plain))
with torch.inference_mode():
    hidden_states(shared, torch.arange(9)[None])
for _ in range(2):
    for model in (plain, shared):
        model.train()
        model.zero_grad()
    expected, found = gradients(plain), gradients(shared)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
assert len({{weights_fingerprint(BaseModel(m, Tokenizer(), "")) for m in (plain, shared)}}) == 1
"""


def test_processes_agree_on_what_is_preferred_and_on_having_no_gradient(tmp_path):
    """Two processes by hand, each with a judge that draws lots: both get the first one's pairs."""
    script = tmp_path / "agree.py"
    script.write_text(AGREE.format(tests=str(Path(__file__).parent)))
    finish(torchrun([sys.executable, str(script)], 2, {}))


AGREE = """
import sys

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, {tests!r})
from conftest import make_llama, make_tokenizer, tiny_texts
from sempa.config import Config
from sempa.data.examples import Triplet
from sempa.model.base import BaseModel
from sempa.training.online import sample_preferences
from sempa.training.processes import World, add_gradients
from sempa.batching.prompts import encode_triplet

dist.init_process_group("gloo")
world = World(dist.get_rank(), 2)
tokenizer = make_tokenizer()
base = BaseModel(make_llama().requires_grad_(False).eval(), tokenizer, "tiny")
preferences = [encode_triplet(tokenizer, Triplet(*texts, 1)) for texts in tiny_texts()[:8]]
draws = np.random.default_rng(world.rank)
judge = lambda sentences, candidates: draws.standard_normal((len(sentences), 2))
made = sample_preferences(Config(objective="online-ipo", online_tokens=6), base, preferences, judge, 0, world)
everybody = [None, None]
dist.all_gather_object(everybody, [preference.responses for preference in made])
assert len(made) > 3 and everybody[0] == everybody[1], everybody

parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
add_gradients(parameters, world)
assert [parameter.grad for parameter in parameters] == [None, None]
if world.rank:
    parameters[1].grad = torch.full((3,), 2.0)
add_gradients(parameters, world)
assert [parameter.grad.tolist() for parameter in parameters] == [[0.0] * 2, [2.0] * 3]
"""


def test_alone_there_is_nothing_to_join_and_nothing_to_add(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_world() == World(0, 1)
    values = torch.tensor([1.0, torch.nan])
    assert merge_known(values, World()) is values
    rows = torch.randn(3, 2, requires_grad=True)
    gathered = gather_rows(rows, torch.tensor([2, 0, 1]), 3, World())
    assert torch.equal(gathered[torch.tensor([2, 0, 1])], rows)
    gathered.sum().backward()
    assert torch.equal(rows.grad, torch.ones(3, 2))


def test_with_a_sharded_base_all_make_as_many_passes_and_each_item_counts_once():
    for count in (1, 2, 5, 6):
        made = [passes(list(range(count)), World(rank, 3, sharded=True)) for rank in range(3)]
        assert len({len(own) for own in made}) == 1
        assert sorted(item for own in made for item, counted in own if counted) == list(range(count))
    assert passes([], World(0, 3, sharded=True)) == []
    assert passes([7], World(1, 3)) == []


def test_shares_are_disjoint_and_together_everything():
    items = list(range(11))
    parts = [share(items, World(rank, 3)) for rank in range(3)]
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
