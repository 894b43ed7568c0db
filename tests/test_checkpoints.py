"""Checkpoints: whole or absent, damage is found by checksum, and a full or forbidden disk is one sentence."""

import errno
import os
import resource
import signal

import pytest
import torch
from conftest import make_llama

from sempa import SempaError
from sempa.io.files import read_tensors, remove_leftovers, write_atomic, write_folder, write_tensors
from sempa.model.adapter_files import WEIGHTS_FILE, load_adapter, read_adapter, save_adapter
from sempa.model.lora import add_lora, lora_parameters
from sempa.training.checkpoints import checkpoint_files, load_checkpoint, read_checkpoint, save_checkpoint


def learner(seed=0):
    """A tiny model with an adapter, and an optimiser that has made one step."""
    model = make_llama().requires_grad_(False)
    add_lora(model, 2, 4, seed=seed)
    parameters = lora_parameters(model)
    optimizer = torch.optim.AdamW(parameters.values())
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    return model, optimizer


def weights(model):
    return {name: p.detach().clone() for name, p in lora_parameters(model).items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints of steps 3 and 6, of different weights, and those weights."""
    saved = {}
    for step in (3, 6):
        model, optimizer = learner(step)
        save_checkpoint(tmp_path, step, model, optimizer, {"best_score": float(step)})
        saved[step] = weights(model)
    return tmp_path, saved


def newest(run):
    return run / "checkpoints" / "step-000006.safetensors"


def test_a_copy_of_a_checkpoint_is_no_checkpoint_and_is_not_removed(run):
    folder, _ = run
    copy = newest(folder).with_stem("step-000006-copy")
    copy.write_bytes(newest(folder).read_bytes())
    assert checkpoint_files(folder)[-1] == newest(folder)
    for step in (9, 12, 15):
        model, optimizer = learner(step)
        save_checkpoint(folder, step, model, optimizer, {})
    assert copy.exists()
    assert [path.stem for path in checkpoint_files(folder)] == ["step-000012", "step-000015"]


def test_a_checkpoint_restores_adapter_and_moments_bit_for_bit(tmp_path):
    model, optimizer = learner()
    assert load_checkpoint(tmp_path, model, optimizer) == {}
    assert not checkpoint_files(tmp_path)
    save_checkpoint(tmp_path, 7, model, optimizer, {"best_score": 3.5})
    other, restored = learner(9)
    assert load_checkpoint(tmp_path, other, restored) == {"step": 7, "best_score": 3.5}
    assert same(weights(model), weights(other))
    for a, b in zip(lora_parameters(model).values(), lora_parameters(other).values(), strict=True):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[a][key], restored.state[b][key])


def test_the_latest_two_are_kept_in_the_order_of_their_steps(tmp_path):
    model, optimizer = learner()
    for step in (9, 999_999, 1_000_000):
        save_checkpoint(tmp_path, step, model, optimizer, {})
    assert [path.stem for path in checkpoint_files(tmp_path)] == ["step-999999", "step-1000000"]
    assert load_checkpoint(tmp_path, model, optimizer)["step"] == 1_000_000


@pytest.mark.parametrize("length", [0, 7, 300, -5])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_a_way_out(run, length):
    folder, saved = run
    newest(folder).write_bytes(newest(folder).read_bytes()[:length])
    model, optimizer = learner(1)
    with pytest.raises(SempaError, match=r"checkpoint .*step-000006\.safetensors is damaged .*remove it to resume"):
        load_checkpoint(folder, model, optimizer)
    newest(folder).unlink()
    assert load_checkpoint(folder, model, optimizer) == {"step": 3, "best_score": 3.0}
    assert same(weights(model), saved[3])


@pytest.mark.parametrize("place", [0, 0.4, 0.8, 1])
def test_one_flipped_bit_is_found_by_the_checksum(run, place):
    folder, _ = run
    content = bytearray(newest(folder).read_bytes())
    body = 8 + int.from_bytes(content[:8], "little")
    content[body + int(place * (len(content) - 1 - body))] ^= 1
    newest(folder).write_bytes(content)
    with pytest.raises(SempaError, match=r"is damaged \(its checksum does not match\); remove it to resume"):
        load_checkpoint(folder, *learner(1))


def test_a_file_of_other_tensors_is_no_checkpoint(run):
    folder, _ = run
    tensors = read_tensors(newest(folder))
    for state in (None, torch.ones(3), torch.tensor([300]), torch.tensor(list(b"{half"), dtype=torch.uint8)):
        others = {name: tensor for name, tensor in tensors.items() if name != "state"}
        write_tensors(newest(folder), others if state is None else {**others, "state": state})
        with pytest.raises(SempaError, match="is damaged"):
            read_checkpoint(newest(folder))


def test_a_checkpoint_of_another_model_is_an_error(run):
    folder, _ = run
    model = make_llama().requires_grad_(False)
    add_lora(model, 3, 4)
    with pytest.raises(SempaError, match="has shape"):
        load_checkpoint(folder, model, torch.optim.AdamW(lora_parameters(model).values()))


def test_an_adapter_is_plain_safetensors_and_refused_when_it_is_cut_short(tmp_path):
    from safetensors.torch import load_file

    model, _ = learner()
    save_adapter(model, tmp_path, "source")
    path = tmp_path / WEIGHTS_FILE
    whole = path.read_bytes()
    assert same(load_file(path), weights(model))
    body = 8 + int.from_bytes(whole[:8], "little")
    for length in (0, 7, 100, body, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(SempaError, match="cannot be read"):
            load_adapter(make_llama(), tmp_path)
    path.write_bytes(whole)
    assert same(read_adapter(tmp_path)[1], weights(model))


def test_equal_tensors_give_equal_bytes_whatever_the_dtype(tmp_path):
    tensors = {
        "b": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        "a": torch.tensor(1.5, dtype=torch.float64),
        "c": torch.zeros(0, 4, dtype=torch.int64),
    }
    for name in ("one", "two"):
        write_tensors(tmp_path / name, tensors)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found = read_tensors(tmp_path / "one")
    assert same(found, tensors)
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
        name: (t.dtype, t.shape) for name, t in tensors.items()
    }
    # Others must be able to read what is served from here.
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_full_disk_is_named_and_the_earlier_checkpoint_stays_whole(run, monkeypatch):
    """Every write, fsync and rename of a checkpoint in turn finds the disk full."""
    folder, saved = run
    model, optimizer = learner(1)
    real = os.fsync
    for failing in range(20):
        calls = []

        def full(descriptor, calls=calls, failing=failing):
            calls.append(1)
            if len(calls) == failing + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        try:
            save_checkpoint(folder, 9, model, optimizer, {})
        except SempaError as error:
            assert "No space left on device" in str(error)
        else:
            break
        finally:
            monkeypatch.setattr(os, "fsync", real)
        other, moments = learner(2)
        assert load_checkpoint(folder, other, moments)["step"] == 6
        assert same(weights(other), saved[6])
        assert not list((folder / "checkpoints").glob(".*.tmp"))
    assert 1 <= failing < 20
    assert [path.stem for path in checkpoint_files(folder)] == ["step-000006", "step-000009"]


def test_a_file_that_may_not_grow_is_one_sentence_from_the_real_system_call(run):
    """RLIMIT_FSIZE makes the kernel itself refuse the write, as a full quota would."""
    folder, _ = run
    model, optimizer = learner(1)

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(SempaError, match=r"cannot be written: File too large"):
            save_checkpoint(folder, 9, model, optimizer, {})

    assert in_child(limited) == 0
    assert [path.stem for path in checkpoint_files(folder)] == ["step-000003", "step-000006"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    model, optimizer = learner()
    (tmp_path / "run").write_text("a file where the run's folder should be")
    with pytest.raises(SempaError, match="cannot be written") as caught:
        save_checkpoint(tmp_path / "run", 1, model, optimizer, {})
    assert len(str(caught.value).splitlines()) == 1
    if os.geteuid() == 0:
        pytest.skip("root may write into a read-only folder")
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(SempaError, match="Permission denied"):
        save_checkpoint(tmp_path / "closed", 1, model, optimizer, {})


def in_child(function):
    """Run `function` in a forked process; its exit status, 0 when it returned."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def test_what_killed_processes_left_is_swept_away(run):
    folder, _ = run
    # An export that is being written.
    exported = folder / ".merged.0123456789abcdef.tmp"
    exported.mkdir()
    (exported / "half").write_text("x")
    (folder / "adapter").mkdir()
    for name in (".metrics.jsonl", "adapter/.adapter_model.safetensors"):
        (folder / f"{name}.0123456789abcdef.tmp").write_text("x")
    # Somebody else's.
    others = [folder / "kept.tmp", folder / ".draft.tmp", folder / ".my.notes.tmp"]
    for path in others:
        path.write_text("x")
    save_checkpoint(folder, 9, *learner(), {})
    assert sorted(folder.rglob("*.tmp")) == sorted([*others, exported])
    assert (exported / "half").read_text() == "x"
    remove_leftovers(folder / "nowhere")


def test_a_folder_is_written_as_a_whole_or_not_at_all(tmp_path):
    def fails(folder):
        write_atomic(folder / "half", "half")
        raise SempaError("stop")

    with pytest.raises(SempaError, match="stop"):
        write_folder(tmp_path / "target", fails)
    assert list(tmp_path.iterdir()) == []
    write_folder(tmp_path / "target", lambda folder: write_atomic(folder / "first", "first"))
    with pytest.raises(SempaError, match=r"target: cannot be written: .*not empty"):
        write_folder(tmp_path / "target", lambda folder: write_atomic(folder / "second", "second"))
    assert [p.name for p in tmp_path.rglob("*")] == ["target", "first"]


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    path = tmp_path / "file"

    def meanwhile(temporary):
        monkeypatch.undo()
        write_atomic(path, "second")
        assert path.read_text() == "second"

    monkeypatch.setattr("sempa.io.files.fsync", meanwhile)
    write_atomic(path, "first")
    assert path.read_text() == "first"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
