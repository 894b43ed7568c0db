"""The loop: it learns, resumes to the same bits, and stops cleanly whatever goes wrong."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PREFERENCE_ONLY, SETTINGS, weights

from sempa import SempaError
from sempa.batching.batches import make_batch
from sempa.batching.prompts import encode_triplet
from sempa.config import Config
from sempa.model.adapter_files import read_adapter
from sempa.training import loop
from sempa.training.checkpoints import checkpoint_files, read_checkpoint
from sempa.training.metrics import print_step, read_metrics
from sempa.training.step import learning_rate, make_optimizer


def test_training_raises_the_reward_margin_and_accuracy(setting, tmp_path):
    setting(epochs=6.0, lora_dropout=0.0)
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert len(records) == 24
    assert records[0]["rewards/margins"] == 0.0
    assert records[0]["loss"] - records[0]["nll_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert records[-1]["rewards/margins"] > 0.5
    assert records[-1]["rewards/accuracies"] == 1.0
    assert records[-1]["nll_loss"] < records[0]["nll_loss"]


def test_metrics_bear_the_names_that_trl_made_known(setting, tmp_path):
    setting()
    record = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    names = ("chosen", "rejected", "accuracies", "margins")
    assert {f"rewards/{name}" for name in names} | {"logps/chosen", "logps/rejected"} <= record.keys()
    assert {"loss", "learning_rate", "grad_norm", "epoch", "step", "nll_loss"} <= record.keys()
    assert record["rewards/margins"] == pytest.approx(record["rewards/chosen"] - record["rewards/rejected"])


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_closes_ends_the_running_step_unless_hang_ups_are_ignored(ignored):
    handler = signal.SIG_IGN if ignored else lambda *_: None
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with loop._stop_request() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert [number for number, _ in received] == ([] if ignored else [signal.SIGHUP])
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_passed_on_at_once_is_the_same_one_and_a_later_one_stops(monkeypatch):
    """A cluster signals every process, and torchrun passes its own on: within milliseconds, each gets two."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    with loop._stop_request():
        for now[0] in (100.0, 100.5):
            os.kill(os.getpid(), signal.SIGTERM)
        now[0] = 103.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_seconds_of_a_run_hold_those_after_its_last_checkpoint_and_those_of_a_resume(setting, tmp_path):
    _, state = setting()
    _, saved = read_checkpoint(checkpoint_files(tmp_path / "run")[-1])
    # No step is left.
    _, resumed = setting()
    assert saved["seconds"] < state["seconds"] and saved["seconds"] < resumed["seconds"]


@pytest.mark.parametrize("stop_after", [1, 3, 5, 7, 8])
def test_an_interrupted_run_resumes_to_the_same_bits(setting, tmp_path, monkeypatch, stop_after):
    """Whatever the step of the interrupt: weights, metrics and the best adapter are those of the unbroken run."""
    scores = [1, 3, 2]
    whole, state = setting("whole", scores)
    real_step = torch.optim.AdamW.step
    calls = []

    def step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == stop_after:
            os.kill(os.getpid(), signal.SIGINT)
        return real_step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(KeyboardInterrupt):
        setting("broken", scores)
    done = sum(step <= stop_after for step in (3, 6, 8))
    resumed, resumed_state = setting("broken", scores[done:])
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))
    unequal = ("seconds", "triplets_per_second")
    first, second = (
        [{k: v for k, v in r.items() if k not in unequal} for r in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("whole", "broken")
    )
    assert first == second
    assert {k: state[k] for k in ("step", "best_step", "best_score")} == {
        k: resumed_state[k] for k in ("step", "best_step", "best_score")
    }
    kept = [read_adapter(tmp_path / run / "adapter")[1] for run in ("whole", "broken")]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_a_killed_process_leaves_whole_checkpoints_and_resumes_to_the_same_adapter(
    tiny_folder, triplets_file, tmp_path
):
    """kill -9 in the midst of training, then `--resume`: the adapter equals the one of a run that was left in peace."""
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {tiny_folder}\ndtype: float32\ndevice: cpu\ntriplets: {triplets_file}\nheld_out: 0\nepochs: 20\n"
        "batch_size: 4\neval_every: 2\nlora_rank: 2\ndev_pairs: 10\nretention: 0\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SEMPA_CACHE": str(tmp_path / "cache")}

    def sempa(*arguments):
        return [sys.executable, "-m", "sempa", "train", *arguments]

    whole, killed = (str(tmp_path / name) for name in ("whole", "killed"))
    subprocess.run(sempa(str(config), f"output={whole}"), env=environment, check=True, capture_output=True, timeout=900)
    process = subprocess.Popen(sempa(str(config), f"output={killed}"), env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not list(Path(killed).glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (Path(killed) / "report.json").exists()
    subprocess.run(sempa("--resume", killed), env=environment, check=True, capture_output=True, timeout=900)
    adapters = [(Path(run) / "adapter" / "adapter_model.safetensors").read_bytes() for run in (whole, killed)]
    assert adapters[0] == adapters[1]
    assert json.loads((Path(killed) / "report.json").read_text())["training"]["steps"] == 80


def test_the_best_checkpoint_by_the_development_score_is_kept(setting, tmp_path):
    base, state = setting(score=[5, 9, 7])
    assert (state["best_step"], state["best_score"]) == (6, 9.0)
    _, best = read_adapter(tmp_path / "run" / "adapter")
    last = weights(base)
    assert not all(torch.equal(best[name], last[name]) for name in last)
    steps = sorted(path.stem for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert steps == ["step-000006", "step-000008"]


def test_gradient_accumulation_over_rows_does_not_change_the_step(setting):
    one_row, _ = setting("wide", row_tokens=4096, lora_dropout=0.0, epochs=0.5)
    many_rows, _ = setting("narrow", row_tokens=1, lora_dropout=0.0, epochs=0.5)
    for name, parameter in weights(one_row).items():
        torch.testing.assert_close(parameter, weights(many_rows)[name], rtol=1e-3, atol=2e-5)


def test_the_learning_rate_warms_up_and_then_follows_half_a_cosine():
    config = Config(learning_rate=2.0)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4 * (i + 1) for i in range(5)])
    assert rates[5] == pytest.approx(2.0)
    assert rates[5 + 19] == pytest.approx(1 + math.cos(math.pi * 19 / 95))
    assert 0 < rates[99] < 0.01
    assert learning_rate(Config(learning_rate=1.0), 0, 1) == 1.0


def test_batches_hold_every_preference_once_and_only_the_seed_changes_them(tokenizer, triplets):
    preferences = [encode_triplet(tokenizer, t) for t in triplets]

    def members(seed):
        config = Config(**PREFERENCE_ONLY, batch_size=5, seed=seed)
        batches = (make_batch(config, preferences, step) for step in range(4))
        return [
            sorted(preferences.index(batch.preferences[i]) for row in batch.preference_rows for i in row.examples)
            for batch in batches
        ]

    assert sorted(i for batch in members(0) for i in batch) == list(range(16))
    assert [len(batch) for batch in members(0)] == [5, 5, 5, 1]
    assert members(0) == members(0)
    assert members(0) != members(1)


def test_a_loss_that_is_not_finite_stops_with_step_and_lines_and_leaves_a_whole_checkpoint(
    setting, tmp_path, monkeypatch
):
    from sempa.training import step

    real, calls = step.response_token_logprobs, []

    def poisoned(*arguments):
        calls.append(1)
        result = real(*arguments)
        return result * math.nan if len(calls) >= 6 else result

    monkeypatch.setattr(step, "response_token_logprobs", poisoned)
    with pytest.raises(SempaError) as caught:
        setting(epochs=9.0, eval_every=1, row_tokens=4096)
    message = str(caught.value)
    assert message.startswith("step 6: the loss is nan")
    assert "lines " in message
    last = checkpoint_files(tmp_path / "run")[-1]
    assert last.stem == "step-000005"
    assert all(tensor.isfinite().all() for tensor in read_checkpoint(last)[0].values())


def test_a_loss_that_refuses_nan_stops_with_step_and_lines_too(setting, monkeypatch):
    monkeypatch.setattr("sempa.training.step.MAX_GRAD_NORM", 1e20)
    expected = r"step \d+: .*(nan|inf).*learning_rate \(1e\+20\).*; the batch holds lines \d.* of .*"
    with pytest.raises(SempaError, match=expected):
        setting(learning_rate=1e20, epochs=9.0, contrast=1.0)


def test_a_run_goes_on_with_its_own_triplets_only(setting, triplets):
    setting(epochs=1.0)
    triplets[0], original = replace(triplets[0], rejected="A cloud drifts by."), triplets[0]
    try:
        with pytest.raises(SempaError, match="other triplets; restore those"):
            setting(epochs=2.0)
    finally:
        triplets[0] = original
    _, state = setting(epochs=2.0)
    assert state["step"] == 8


def test_a_run_goes_on_with_its_own_base_only(setting, monkeypatch):
    def on_other_weights(config, model):
        model.model.layers[0].mlp.up_proj.base.weight.data *= 2
        return make_optimizer(config, model)

    setting(epochs=1.0)
    with monkeypatch.context() as changed:
        changed.setattr("sempa.training.loop.make_optimizer", on_other_weights)
        with pytest.raises(SempaError, match="its checkpoints belong to another base or other triplets"):
            setting(epochs=2.0)
    _, state = setting(epochs=2.0)
    assert state["step"] == 8


def test_ctrl_c_while_the_last_development_score_is_taken_stops_before_the_report(setting, tmp_path):
    def scores():
        yield from (1, 2)
        os.kill(os.getpid(), signal.SIGINT)
        yield 3

    with pytest.raises(KeyboardInterrupt):
        setting("run", scores())
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 8
    _, state = setting("run", [])
    assert (state["step"], state["best_score"]) == (8, 3)


def test_of_equal_development_scores_the_first_is_kept(setting):
    _, state = setting(score=[5, 9, 9])
    assert state["best_step"] == 6


def test_the_epoch_of_a_step_counts_the_step_itself(setting, tmp_path):
    setting(epochs=1.5)
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert [r["epoch"] for r in records] == [r["step"] / 4 for r in records]


def test_a_resumed_run_counts_the_seconds_before_it(setting, monkeypatch):
    setting(epochs=1.0)
    real = loop.load_checkpoint
    monkeypatch.setattr(loop, "load_checkpoint", lambda *given: real(*given) | {"seconds": 1e6})
    _, state = setting(epochs=2.0)
    assert 1e6 < state["seconds"] < 1.1e6


def test_every_epoch_shuffles_the_preferences_into_new_batches(tokenizer, triplets):
    """So that in-batch negatives change, and another fraction of each batch is ranked."""
    preferences = [encode_triplet(tokenizer, t) for t in triplets]

    def lines(seed, epoch):
        config = Config(**SETTINGS | {"batch_size": 5}, seed=seed)
        steps = range(4 * epoch, 4 * (epoch + 1))
        return [[preference.line for preference in make_batch(config, preferences, step).preferences] for step in steps]

    first, second = lines(0, 0), lines(0, 1)
    assert [len(batch) for batch in second] == [5, 5, 5, 1]
    assert sorted(chain.from_iterable(second)) == sorted(chain.from_iterable(first))
    assert {frozenset(batch) for batch in first}.isdisjoint(map(frozenset, second))
    assert lines(0, 1) == second != lines(1, 1)
    assert lines(0, 2) not in (first, second)


def test_the_name_of_the_base_is_found_once(setting, monkeypatch):
    """For a GGUF file it takes reading the whole file."""
    asked = []
    monkeypatch.setattr(loop, "portable_name", lambda name: asked.append(name) or name)
    _, state = setting(score=[3, 5, 9])
    assert state["best_step"] == 8
    assert len(asked) == 1


def test_metrics_are_on_disk_before_the_checkpoint_at_which_a_resumed_run_cuts_them(setting, monkeypatch):
    order, real = [], loop.save_checkpoint
    monkeypatch.setattr(loop, "fsync", lambda path: order.append(path.name))
    monkeypatch.setattr(loop, "save_checkpoint", lambda *given: order.append("checkpoint") or real(*given))
    setting(epochs=1.0)
    assert order == ["metrics.jsonl", "checkpoint"] * 2


def test_displacement_is_warned_of_once(setting, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "warn_of_displacement", lambda _, step, __: asked.append(step) or step >= 3)
    setting()
    assert asked == [1, 2, 3]


def test_a_steps_line_has_losses_rate_and_minutes_left(capsys):
    record = {
        "loss": 0.5,
        "rewards/margins": 1.25,
        "rewards/accuracies": 0.75,
        "contrast_loss": 2.0,
        "neutral_kl": 0.01,
    }
    print_step(10, 84, record, 12.34, 5.67)
    losses = "loss 0.500  margin 1.250  accuracy 0.750  contrast 2.000  KL 0.010"
    assert capsys.readouterr().out == f"step 10/84  {losses}  12.3 triplets/s  5.7 min left\n"


def test_rate_and_time_left_are_those_of_the_clock(setting, monkeypatch):
    clock, shown, real = [100.0], [], loop.train_step

    def slow(*given):
        clock[0] += 30.0
        return real(*given)

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(loop, "train_step", slow)
    monkeypatch.setattr(loop, "print_step", lambda done, _, __, *rest: shown.append((done, *rest)))
    setting()
    # Steps of half a minute on batches of 4.
    assert shown == [(1, pytest.approx(4 / 30), pytest.approx(3.5)), (8, pytest.approx(4 / 30), 0.0)]
    shown.clear()
    setting(epochs=3.0)
    # Resumed: of steps 9 to 12, two are left after the tenth.
    assert shown == [(10, pytest.approx(4 / 30), pytest.approx(1.0)), (12, pytest.approx(4 / 30), 0.0)]
