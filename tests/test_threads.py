"""Passes that run side by side have the results of one after another, and threads are afterwards as before."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from sempa.embedding.embed import embed
from sempa.model import threads
from sempa.model.base import load_base
from sempa.model.forward import hidden_states
from sempa.model.lora import adapter_disabled
from sempa.model.threads import parallel_map


@pytest.fixture
def eight_threads():
    """Eight threads for an operation, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield 8
    torch.set_num_threads(before)


@pytest.fixture
def base(tiny_folder):
    return load_base(str(tiny_folder), "bfloat16", "cpu")


@pytest.mark.parametrize(("items", "share"), [(1, 8), (2, 4), (3, 2), (8, 1), (20, 1)])
def test_results_come_in_order_from_passes_that_share_the_threads(eight_threads, base, items, share):
    seen, running, most = [], set(), []

    def run(item):
        seen.append((torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        running.add(item)
        most.append(len(running))
        time.sleep(0.02 + 0.01 * (item % 3))
        running.remove(item)
        return -item

    with torch.no_grad():
        assert list(parallel_map(base.model, run, range(items))) == [-item for item in range(items)]
    assert set(seen) == {(share, False, False)}
    assert max(most) <= 8
    assert items == 1 or max(most) > 1
    with torch.inference_mode():
        modes = list(parallel_map(base.model, lambda _: torch.is_inference_mode_enabled(), range(items)))
    assert modes == [True] * items
    assert list(parallel_map(base.model, lambda _: torch.is_grad_enabled(), range(items))) == [True] * items
    assert torch.get_num_threads() == 8


def test_threads_that_begin_beside_a_parallel_map_have_all_threads_for_good(eight_threads, base):
    """An application's own pool: its threads begin while requests overlap, and live on."""
    found, leave = [], threading.Event()

    def live_on():
        torch.ones(4) @ torch.ones(4)
        leave.wait(60)
        found.append(torch.get_num_threads())

    def request(_):
        other = threading.Thread(target=live_on)
        other.start()
        return other

    others = [*parallel_map(base.model, request, range(5)), *parallel_map(base.model, request, range(3))]
    leave.set()
    for other in others:
        other.join()
    assert found == [8] * 8


def test_the_first_error_is_raised_and_the_rest_is_dropped(eight_threads, base):
    begun = []

    def run(item):
        begun.append(item)
        if item == 3:
            raise ValueError("the third")
        time.sleep(0.01)
        return item

    with pytest.raises(ValueError, match="the third"):
        list(parallel_map(base.model, run, range(400)))
    assert len(begun) < 300
    assert torch.get_num_threads() == 8


def test_only_bfloat16_on_a_processor_gains(base, eight_threads):
    def ran_in(model):
        return set(parallel_map(model, lambda _: threading.get_ident(), range(3)))

    here = {threading.get_ident()}
    assert not ran_in(base.model) & here
    assert ran_in(base.model.float()) == here


def test_the_adapter_is_off_in_the_threads_of_the_caller_alone(adapted_base, monkeypatch, eight_threads):
    """One thread reads the reference while another reads the policy of the same model."""
    monkeypatch.setattr(threads, "passes_at_once", lambda model: 8)
    # In float64: one thread's float32 products round otherwise than eight threads' on some processors.
    model, tokens = adapted_base.model.double(), torch.arange(6)[None]
    policy = hidden_states(model, tokens)
    with adapter_disabled(model):
        reference = hidden_states(model, tokens)
    assert not torch.allclose(policy, reference)

    def read(off):
        if not off:
            return hidden_states(model, tokens)
        with adapter_disabled(model):
            time.sleep(0.01)
            return hidden_states(model, tokens)

    for off, found in zip([True, False] * 10, parallel_map(model, read, [True, False] * 10), strict=True):
        torch.testing.assert_close(found, reference if off else policy)
    with adapter_disabled(model):
        for found in parallel_map(model, read, [False] * 4):
            torch.testing.assert_close(found, reference)


def test_embeddings_are_those_of_one_thread(tiny_folder, monkeypatch, eight_threads):
    base = load_base(str(tiny_folder), "float32", "cpu")
    sentences = [f"{' '.join(['A man pets a dog'] * (1 + i % 5))} {i}" for i in range(40)]
    expected = embed(base, sentences, 4)
    monkeypatch.setattr(threads, "passes_at_once", lambda model: 8)
    for _ in range(3):
        np.testing.assert_allclose(embed(base, sentences, 4), expected, rtol=1e-4, atol=1e-6)


FORKS = """
import os, sys, time
import torch
torch.set_num_threads(2)
from sempa import Embedder
embedder = Embedder("smollm2-135m", dtype=sys.argv[1], device="cpu")
sentences = [f"A man number {i} walks down the long street." for i in range(80)]
before = embedder.encode(sentences)
child = os.fork()
if not child:
    same = abs(embedder.encode(sentences) - before).max() < 1e-2 * abs(before).max()
    os._exit(0 if same and torch.get_num_threads() == 1 else 1)
end = time.monotonic() + 60
while (found := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
    time.sleep(0.05)
if not found[0]:
    os.kill(child, 9)
sys.exit(os.waitstatus_to_exitcode(found[1]) if found[0] else "the child hangs")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_child_that_is_forked_after_work_on_several_threads_works_on_one(dtype):
    """The embedded model, because a tiny one does not share its products out among threads."""
    done = subprocess.run([sys.executable, "-c", FORKS, dtype], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
