"""Keep a server busy for long with all that clients do, and see whether its memory, handles and threads stay flat.

    .venv/bin/python experiments/reliability/serve_load.py --minutes 60

`sempa serve` runs a tiny model in a process of its own. Clients embed one sentence and many, chat whole and streamed,
hang up in the middle, and send what is no request. Every answer must have the status that it should. The server's
process is measured all the while and judged as in long_run.py. Writes the figures as JSON and the plot as SVG.
"""

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import torch
from long_run import KEPT, LARGEST_GROWTH_MIB, LARGEST_GROWTH_SHARE, Sample, judge, plot
from tiny import make_folder, sentences

from sempa.io.files import write_atomic, write_json
from sempa.report.plots import available

EMBED, CHAT = "/v1/embeddings", "/v1/chat/completions"
SECONDS_BETWEEN_SAMPLES = 1.0


def one_request(client: httpx.Client, chance: random.Random, texts: list[str]) -> str:
    """Do one of the things that clients do; returns its name, and raises where the answer is not as it should be."""
    chat = {"messages": [{"role": "user", "content": chance.choice(texts)}], "max_tokens": chance.randint(1, 60)}
    kind = chance.choice(("sentence", "sentence", "sentence", "list", "answer", "stream", "hang-up", "malformed"))
    if kind == "sentence":
        _expect(client.post(EMBED, json={"input": chance.choice(texts)}), 200)
    elif kind == "list":
        found = client.post(EMBED, json={"input": chance.sample(texts, 40), "encoding_format": "base64"})
        _expect(found, 200)
    elif kind == "answer":
        _expect(client.post(CHAT, json=chat), 200, 429)
    elif kind == "malformed":
        _expect(client.post(CHAT, content=chance.randbytes(chance.randint(0, 200))), 400)
    else:
        with client.stream("POST", CHAT, json=chat | {"stream": True}) as found:
            _expect(found, 200, 429)
            lines = list(itertools.islice(found.iter_lines(), 3 if kind == "hang-up" else None))
            if kind == "stream" and found.status_code == 200 and lines[-2:] != ["data: [DONE]", ""]:
                raise SystemExit(f"a stream ended with {lines[-2:]}")
    return kind


def _expect(found: httpx.Response, *statuses: int) -> None:
    if found.status_code not in statuses:
        raise SystemExit(f"status {found.status_code}, expected {statuses}: {found.read()[:500]!r}")


def measure(process: int, began: float) -> Sample:
    """The server's state from Linux's `/proc`."""
    place = Path(f"/proc/{process}")
    pages = int((place / "statm").read_text().split()[1])
    handles, threads = (len(list((place / name).iterdir())) for name in ("fd", "task"))
    return Sample(time.perf_counter() - began, pages * os.sysconf("SC_PAGE_SIZE"), handles, threads, 0)


def load(folder: Path, minutes: float, clients: int) -> dict:
    """So many clients for so long; the figures."""
    command = [sys.executable, "-m", "sempa", "serve", str(make_folder(folder)), "--port", "0", "--dtype", "float32"]
    texts, done, failures, samples = sentences(200), Counter(), [], []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        address = re.search(r"http://[\d.]+:\d+", server.stdout.readline())[0]
        began, stop = time.perf_counter(), threading.Event()

        def run(seed: int) -> None:
            chance = random.Random(seed)
            try:
                while not stop.is_set():
                    # A client now and then comes anew.
                    with httpx.Client(base_url=address, timeout=120) as client:
                        for _ in range(50):
                            done[one_request(client, chance, texts)] += 1
                            if stop.is_set():
                                break
            except (SystemExit, httpx.HTTPError) as error:
                failures.append(f"{type(error).__name__}: {error}")
                stop.set()

        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        while not stop.wait(SECONDS_BETWEEN_SAMPLES) and time.perf_counter() - began < 60 * minutes:
            samples.append(measure(server.pid, began))
        stop.set()
        for thread in threads:
            thread.join()
        metrics = dict(re.findall(r"^(sempa_\w+) (\S+)$", httpx.get(f"{address}/metrics").text, re.MULTILINE))
        server.terminate()
    if failures:
        raise SystemExit(failures[0])
    judged = {key: value for key, value in judge(samples).items() if not key.startswith(("cache", "memory_growth_kib"))}
    # Connections come and go, so that the last sample says little.
    before, after = samples[len(samples) // 4 : len(samples) // 2], samples[3 * len(samples) // 4 :]
    judged["handles_flat"] = max(one.handles for one in after) <= max(one.handles for one in before)
    # The pool of `asyncio.to_thread` starts one more thread whenever all are busy, until it is full.
    judged["threads_flat"] = judged["threads"]["most"] <= samples[0].threads + min(32, os.cpu_count() + 4)
    kept = samples[:: -(-len(samples) // KEPT)]
    return {
        "command": f"serve_load.py --minutes {minutes:g} --clients {clients}",
        "minutes": round(samples[-1].seconds / 60, 2),
        "criterion": f"the line climbs by less than {LARGEST_GROWTH_SHARE:.0%} or {LARGEST_GROWTH_MIB:g} MiB; "
        "handles are no more in the last quarter than in the second; threads stay within asyncio's pool",
        "requests": dict(sorted(done.items())),
        "server": {name: float(value) for name, value in metrics.items()},
        "exit_code": server.returncode,
        **judged,
        "torch": torch.__version__,
        "samples": {
            name: [round(getattr(sample, name), 1) for sample in kept]
            for name in ("seconds", "memory", "handles", "threads")
        },
    }


def main() -> None:
    """Run, print and write; exit code 1 when something is not flat or the server ended with an error."""
    parser = argparse.ArgumentParser(description="Keep a server busy for long, and look for leaks.")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="clients at once (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/serve_load"), help="where .json and .svg go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = load(Path(folder), arguments.minutes, arguments.clients)
    write_json(arguments.out.with_suffix(".json"), result)
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=2))
    if available():
        write_atomic(arguments.out.with_suffix(".svg"), plot(result))
    flat = all(value for key, value in result.items() if key.endswith("_flat"))
    raise SystemExit(0 if flat and result["exit_code"] == 0 else 1)


if __name__ == "__main__":
    main()
