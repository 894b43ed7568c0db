"""Two processes train what one trains: the same loss curve and adapter to rounding, the same checkpoints."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from sempa import SempaError
from sempa.model.adapter_files import read_adapter
from sempa.training.metrics import read_metrics
from sempa.training.processes import gather_rows, join_processes, local_device, process_count

SETTINGS = (
    "dtype: float32\ndevice: cpu\nheld_out: 0\nepochs: 2\nbatch_size: 8\nrow_tokens: 256\neval_every: 2\nlora_rank: 2\n"
    "dev_pairs: 10\nlora_dropout: 0.0\nlearning_rate: 0.01\n"
)


def start(config, run, cache, processes):
    """Start `sempa train` in so many processes; without a config the run is resumed."""
    arguments = ["--resume", str(run)] if config is None else [str(config), f"output={run}"]
    return torchrun([sys.executable, "-m", "sempa", "train", *arguments], processes, {"SEMPA_CACHE": str(cache)})


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


@pytest.mark.parametrize(
    "losses",
    ["preference_fraction: 1.0\nanchor: 1.0\ncontrast: 0\nretention: 0\n", "retention: 2.0\n"],
    ids=["preference alone", "all three"],
)
def test_two_processes_follow_the_loss_curve_of_one(tiny_folder, triplets_file, tmp_path, losses):
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {tiny_folder}\ntriplets: {triplets_file}\n{SETTINGS}{losses}")
    for processes in (1, 2):
        finish(start(config, tmp_path / str(processes), tmp_path / "cache", processes))
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


def test_a_missing_gradient_counts_as_zero(tmp_path):
    script = tmp_path / "summed.py"
    script.write_text(SUMMED)
    finish(torchrun([sys.executable, str(script)], 2, {}))


SUMMED = """
import torch
import torch.distributed as dist

from sempa.training.processes import process_rank, sum_gradients

dist.init_process_group("gloo")
parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
if process_rank():
    parameters[1].grad = torch.full((3,), 2.0)
sum_gradients(parameters)
assert [parameter.grad.tolist() for parameter in parameters] == [[0.0] * 2, [2.0] * 3]
"""


def test_alone_there_is_nothing_to_join_and_nothing_to_add(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    join_processes()
    assert process_count() == 1
    rows = torch.randn(3, 2, requires_grad=True)
    gathered = gather_rows(torch.empty(0, 2), [rows[:2], rows[2:]], [2, 0, 1], 3)
    assert torch.equal(gathered[torch.tensor([2, 0, 1])], rows)
    gathered.sum().backward()
    assert torch.equal(rows.grad, torch.ones(3, 2))


def test_a_stray_world_size_is_named(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SempaError, match=r"WORLD_SIZE is set, but .*RANK expected, but not set.*with torchrun"):
        join_processes()


def test_a_port_that_is_taken_is_one_sentence(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        there = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        for name, value in there.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SempaError, match=r"WORLD_SIZE is set, but .*(EADDRINUSE|address already in use)"):
            join_processes()


def test_all_processes_refuse_a_folder_that_holds_a_run(tiny_folder, triplets_file, tmp_path):
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(f"model: {tiny_folder}\ntriplets: {triplets_file}\n{SETTINGS}")
    (run / "adapter").mkdir(parents=True)
    for process in start(config, run, tmp_path / "cache", 2):
        _, error = process.communicate(timeout=300)
        assert process.returncode == 2
        assert "already holds a run; resume it with" in error and "Traceback" not in error


def test_only_torchrun_says_which_cuda_device_is_meant(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert local_device() is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_device() == "cuda:1"
