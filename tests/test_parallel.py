"""Two processes train what one trains: the same loss curve and adapter to rounding, the same checkpoints."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from sempa.lora import read_adapter
from sempa.parallel import World, gather_rows, join_world, merge_known, share
from sempa.training import read_metrics

SETTINGS = (
    "dtype: float32\ndevice: cpu\nheld_out: 0\nepochs: 2\nbatch_size: 8\nrow_tokens: 256\neval_every: 2\nlora_rank: 2\n"
    "dev_pairs: 10\nbuiltin_pairs: 10\ngeneration_tokens: 0\nlora_dropout: 0.2\nlearning_rate: 0.01\n"
)


def start(config, run, cache, processes, *arguments):
    """Start `sempa train` in so many processes, as torchrun does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SEMPA_CACHE": str(cache)}
    if processes > 1:
        environment |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "sempa", "train", str(config), f"output={run}", *arguments]
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


@pytest.mark.parametrize("terms", ["objective: dpo\n", "objective: dpo\ncontrast: 1.0\nretention: 2.0\n"])
def test_two_processes_follow_the_loss_curve_of_one(tiny_folder, triplets_file, tmp_path, terms):
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {tiny_folder}\ntriplets: {triplets_file}\n{SETTINGS}{terms}neutral_tokens: 64\n")
    for processes in (1, 2):
        # A cache each: the second must not read what the first has computed.
        finish(start(config, tmp_path / str(processes), tmp_path / f"cache{processes}", processes))
    one, two = ([r for r in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in r] for name in ("1", "2"))
    assert len(one) == len(two) == 4
    for first, second in zip(one, two, strict=True):
        for name in first.keys() - {"triplets_per_second"}:
            assert second[name] == pytest.approx(first[name], rel=2e-3, abs=2e-5), name
    adapters = [read_adapter(tmp_path / name / "adapter")[1] for name in ("1", "2")]
    for name, tensor in adapters[0].items():
        # Adam's first steps are lr · sign(g): entries whose gradient is rounding noise may differ.
        close = torch.isclose(adapters[1][name], tensor, rtol=1e-2, atol=1e-4).float().mean()
        assert close > 0.98, name


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


def test_shares_are_disjoint_and_together_everything():
    items = list(range(11))
    parts = [share(items, World(rank, 3)) for rank in range(3)]
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
