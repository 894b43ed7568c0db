"""Kill a worker of a Ray cluster half-way through a corpus and compare what comes of it with what one process embeds.

    pip install 'ray[data]'
    .venv/bin/python experiments/reliability/ray_kill.py --json experiments/results/ray_kill.json

A cluster on this machine embeds a corpus with a tiny model on two actors. When half of the shards are written, an actor
that is embedding gets SIGKILL. At the end shards and manifest must equal, to the byte, those that `sempa embed` makes
of the same file without Ray. Then two shards are taken away, and Ray must make these two again and no other.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import ray
from tiny import make_folder, one_thread, sentences

from sempa.embedding.corpus import embed_corpus, read_shards
from sempa.embedding.embedder import Embedder
from sempa.io.files import write_json

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
import embed_on_ray
from embed_on_ray import BatchEmbedder

# Long enough that a kill finds the actor at work.
SECONDS_PER_CHUNK = 0.3
OPTIONS = {"dtype": "float32", "device": "cpu"}


def watched(notes: Path) -> type[BatchEmbedder]:
    """A `BatchEmbedder` that takes its time, and tells by files what it has begun and what it has finished."""

    class Watched(BatchEmbedder):
        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            busy = notes / f"busy-{os.getpid()}"
            busy.touch()
            result = super().__call__(batch)
            time.sleep(SECONDS_PER_CHUNK)
            busy.rename(notes / f"done-{os.getpid()}-{time.time_ns()}")
            return result

    return Watched


def ray_kill(folder: Path, rows: int, shard_rows: int) -> dict:
    """Run the test on a cluster of its own; raises `SystemExit` with the reason when a result differs."""
    one_thread()
    began = time.perf_counter()
    model, source, notes = str(make_folder(folder / "model")), folder / "corpus.txt", folder / "notes"
    source.write_text("\n".join(sentences(rows)) + "\n")
    embed_corpus(Embedder(model, **OPTIONS), source, folder / "alone", shard_rows=shard_rows)
    notes.mkdir()
    # Ray starts its workers at the lowest priority but four, where a busy machine lets none of them begin.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A processor each for two actors, and one for what else Ray Data does.
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    embed_on_ray.BatchEmbedder = watched(notes)
    killed = {}

    def kill_half_way() -> None:
        wanted = -(-rows // shard_rows) // 2
        while True:
            busy = sorted(notes.glob("busy-*"))
            if len(list((folder / "ray").glob("shard-*"))) >= wanted and busy:
                pid = int(busy[0].name.partition("-")[2])
                os.kill(pid, signal.SIGKILL)
                killed.update(pid=pid, shards=len(list((folder / "ray").glob("shard-*"))))
                return
            time.sleep(0.01)

    threading.Thread(target=kill_half_way, daemon=True).start()
    try:
        arguments = {"model": model, "workers": 2, "shard_rows": shard_rows, **OPTIONS}
        embed_on_ray.embed_corpus_on_ray(source, folder / "ray", **arguments)
        alone, found = content(folder / "alone"), content(folder / "ray")
        _expect(bool(killed), "no worker was killed before the end")
        _expect(found == alone, "the shards differ from those made without Ray")
        vectors = np.concatenate([part for _, part in read_shards(folder / "ray")])
        done, lost = list(notes.glob("done-*")), list(notes.glob("busy-*"))
        _expect([path.name for path in lost] == [f"busy-{killed['pid']}"], f"other workers were lost: {lost}")
        workers = {path.name.split("-")[1] for path in (*done, *lost)}
        for path in (folder / "ray" / f"shard-{number:06d}.safetensors" for number in (1, 3)):
            path.unlink()
        embed_on_ray.embed_corpus_on_ray(source, folder / "ray", **arguments)
        _expect(content(folder / "ray") == alone, "the shards made again differ")
        again = len(list(notes.glob("done-*"))) - len(done)
        _expect(again == 2, f"{again} shards were embedded again, expected the two that were taken away")
    finally:
        ray.shutdown()
    return {
        "rows": len(vectors),
        "rows_equal_to_those_without_ray": len(vectors),
        "shards": len(alone) - 1,
        "shards_written_before_the_kill": killed["shards"],
        "workers": 2,
        "worker_processes_with_the_one_started_anew": len(workers),
        "chunks_embedded_to_the_end": len(done),
        "chunks_lost_in_the_kill_and_embedded_anew": len(lost),
        "shards_made_again_after_two_were_taken_away": again,
        "seconds": round(time.perf_counter() - began, 1),
        "ray": ray.__version__,
    }


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of a folder's files by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise SystemExit(f"ray kill test failed: {otherwise}")


def main() -> None:
    """Run the test and write its outcome."""
    parser = argparse.ArgumentParser(description="Kill a Ray worker half-way through a corpus.")
    parser.add_argument("--rows", type=int, default=600, help="sentences (default %(default)s)")
    parser.add_argument("--shard-rows", type=int, default=25, help="sentences a shard (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the outcome to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = ray_kill(Path(folder), arguments.rows, arguments.shard_rows)
    print(json.dumps(result, indent=2))
    if arguments.json:
        write_json(arguments.json, {"command": " ".join(["ray_kill.py", *sys.argv[1:]]), **result})


if __name__ == "__main__":
    main()
