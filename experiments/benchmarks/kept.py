"""What a training step keeps for its backward pass: bytes of a packed row's saved tensors, by the line that saves them.

.venv/bin/python experiments/benchmarks/kept.py --triplets snli_dev_triplets.csv

Each storage counts once, for the first line that saves it; the model's and the adapter's weights do not count.
"""

import traceback
from collections import Counter

import race
import torch
from torch import Tensor
from training import OPTIONS, prepare, read_or_make

from sempa.batching.packing import PreferenceRow
from sempa.model.base import BaseModel
from sempa.model.logprobs import sequence_logprobs


def main() -> None:
    given = race.arguments(
        __doc__,
        **OPTIONS,
        count={"type": int, "default": 16, "help": "triplets to pack; the first row is measured (default %(default)s)"},
    )
    # Bytes are the same each time.
    given.rounds = 1
    base, _, batches = prepare(given, read_or_make(given))
    row = batches[0].preference_rows[0]
    kept = kept_bytes(base, row)
    tokens, total = len(row.packed.tokens), sum(kept.values())
    rows = [
        {"line": line, "MiB": size / 2**20, "%": 100 * size / total, "bytes a token": size / tokens}
        for line, size in [("all", total), *kept.most_common(8)]
    ]
    print(f"{tokens} tokens")
    print(race.table(list(rows[0]), [list(row.values()) for row in rows]))
    print(race.keep("kept", given, rows, picture=None))


def kept_bytes(base: BaseModel, row: PreferenceRow) -> "Counter[str]":
    """Bytes that a forward pass over a row saves for its backward pass, by line."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in base.model.parameters()}
    # Held here, so that no later tensor takes the place of an earlier one and passes for it.
    seen: dict[int, Tensor] = {}
    kept: Counter[str] = Counter()

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights and place not in seen:
            seen[place] = tensor
            kept[_line()] += tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sequence_logprobs(base.model, row)
    return kept


def _line() -> str:
    """The line of a model or of sempa that is running: the innermost one outside PyTorch and this file."""
    frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
    return f"{frames[-1].filename.rsplit('/', 1)[-1]}: {frames[-1].line}"


if __name__ == "__main__":
    main()
