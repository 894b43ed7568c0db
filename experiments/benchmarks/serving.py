"""Sentences/s of `sempa serve`: clients that each ask for one sentence at a time, against one that asks for as many.

A list of as many sentences as there are clients is the batch that the server can make of their requests at best. Lists
of all sentences make larger batches.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from urllib.request import urlopen

import race

from sempa.data.sts import caption_pairs


def main() -> None:
    given = race.arguments(
        __doc__,
        model={"default": "smollm2-135m"},
        clients={"type": int, "default": 16, "help": "clients at once (default %(default)s)"},
        each={"type": int, "default": 24, "help": "sentences of each client (default %(default)s)"},
    )
    count = given.clients * given.each
    sentences = [text for pair in caption_pairs("test", count // 2) for text in (pair.first, pair.second)]
    parts = [sentences[i :: given.clients] for i in range(given.clients)]
    lists = f"1 client, {given.clients} sentences at a time"
    with _server(given) as address:
        contestants = {
            lists: lambda: _ask(address, [list(one) for one in zip(*parts)]),
            f"{given.clients} clients, a sentence at a time": lambda: _ask_side_by_side(address, parts),
            "1 client, all sentences at once": lambda: _ask(address, [sentences]),
        }
        seconds = race.alternate(contestants, given.rounds)
        with urlopen(f"{address}/metrics") as found:
            batches = re.search(r"^sempa_batches_total (\S+)", found.read().decode(), re.MULTILINE)[1]
    whole = seconds[lists]
    rows = [
        {"contestant": name, "sentences": count, "sentences/s": count / value, "x lists": whole / value}
        for name, value in seconds.items()
    ]
    print(race.table(list(rows[0]), [list(row.values()) for row in rows]))
    print(f"{batches} batches in all")
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
    """A client that asks for one input after another; the standard library's takes least of the server's processor."""
    with closing(HTTPConnection(address.removeprefix("http://"), timeout=600)) as client:
        for one in inputs:
            client.request("POST", "/v1/embeddings", json.dumps({"input": one, "encoding_format": "base64"}))
            answer = client.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise SystemExit(content.decode())


def _ask_side_by_side(address: str, parts: list[list[str]]) -> None:
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(lambda part: _ask(address, part), parts))


if __name__ == "__main__":
    main()
