"""Sentences/s of `sempa serve`: one request with all sentences, against clients that each ask for one at a time.

What the clients lose is the price of requests; gathering them into batches keeps it small.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import race

from sempa.data.captions import caption_pairs


def main() -> None:
    given = race.arguments(
        __doc__,
        model={"default": "smollm2-135m"},
        clients={"type": int, "default": 16, "help": "clients at once (default %(default)s)"},
        each={"type": int, "default": 8, "help": "sentences of each client (default %(default)s)"},
    )
    count = given.clients * given.each
    sentences = [text for pair in caption_pairs("test", count // 2) for text in (pair.first, pair.second)]
    names = {1: "1 client, a sentence at a time", given.clients: f"{given.clients} clients, a sentence at a time"}
    with _server(given) as address:
        contestants: dict[str, Callable[[], object]] = {"one request": lambda: _ask(address, [sentences])}
        for clients, name in names.items():
            parts = [sentences[i::clients] for i in range(clients)]
            contestants[name] = lambda parts=parts: _ask_side_by_side(address, parts)
        seconds = race.alternate(contestants, given.rounds)
        batches = float(re.search(r"^sempa_batches_total (\S+)", httpx.get(f"{address}/metrics").text, re.M)[1])
    whole = seconds["one request"]
    rows = [
        {"contestant": name, "sentences": count, "sentences/s": count / value, "x one request": whole / value}
        for name, value in seconds.items()
    ]
    print(race.table(list(rows[0]), [list(row.values()) for row in rows]))
    print(f"{batches:.0f} batches in all")
    print(race.keep("serving", given, rows, picture=None))


@contextmanager
def _server(given: argparse.Namespace) -> Iterator[str]:
    command = [sys.executable, "-m", "sempa", "serve", given.model, "--port", "0"]
    command += ["--dtype", race.dtype(given), "--device", given.device]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            yield re.search(r"http://[\d.]+:\d+", process.stdout.readline())[0]
        finally:
            process.terminate()


def _ask(address: str, inputs: list) -> None:
    """A client that asks for one input after another."""
    with httpx.Client(timeout=600) as client:
        for one in inputs:
            body = {"input": one, "encoding_format": "base64"}
            client.post(f"{address}/v1/embeddings", json=body).raise_for_status()


def _ask_side_by_side(address: str, parts: list[list[str]]) -> None:
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(lambda part: _ask(address, part), parts))


if __name__ == "__main__":
    main()
