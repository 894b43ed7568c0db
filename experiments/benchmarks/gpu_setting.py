"""What the sections of gpu.py run on: a GPU's sizes or tiny ones, and the batches and inputs that they share."""

import argparse
import contextlib
import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import logprob_kernel as kernel
import torch
from torch import Tensor
from training import ALPHA, RANK
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from sempa.batching.batches import Batch, make_batch
from sempa.batching.prompts import encode_triplet
from sempa.config import Config
from sempa.data.triplets import caption_triplets
from sempa.errors import SempaError
from sempa.model.base import faster_dtype
from sempa.model.resolve import first_line, resolve_model

for neighbour in ("plan", "reliability"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / neighbour))
from shapes import model_config  # noqa: E402
from tiny import make_folder, make_tokenizer  # noqa: E402

DPO = Config(preference=1.0, preference_fraction=1.0, contrast=0.0, retention=0.0, lora_rank=RANK, lora_alpha=ALPHA)

# Llama-3.2-1B's shape; plan.py has that of 8 B.
ONE_BILLION = LlamaConfig(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=True,
)


@dataclass(frozen=True)
class Setting:
    """What the sections run on: by default a GPU's sizes."""

    device: str
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    # Embedding and the run need a trained model.
    model: str = "smollm2-135m"
    dtype: torch.dtype = torch.bfloat16
    rounds: int = 3
    shapes: dict[str, LlamaConfig] = field(
        default_factory=lambda: {"1 B": ONE_BILLION, "8 B": model_config("meta-llama/Meta-Llama-3-8B-Instruct")}
    )
    row_tokens: int = 4096
    triplets: int = 256
    # Rows, width and vocabulary.
    kernel_sizes: Sequence[tuple[int, int, int]] = ((4096, 2048, 128_256), (4096, 4096, 128_256), (2048, 576, 49_152))
    sentences: int = 1024
    run: dict[str, object] = field(default_factory=dict)

    @property
    def dtypes(self) -> list[torch.dtype]:
        """What is checked for correctness."""
        return list(dict.fromkeys((torch.float32, self.dtype)))


def full_setting(device: str, folder: Path) -> Setting:
    """A GPU's sizes; where SmolLM2 is not at hand, the sections that need no trained model get another tokenizer."""
    try:
        return Setting(device, folder, AutoTokenizer.from_pretrained(resolve_model("smollm2-135m")))
    except SempaError:
        return Setting(device, folder, make_tokenizer())


def tiny_setting(device: str, folder: Path) -> Setting:
    """Two and three narrow blocks, and a few texts."""
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    return Setting(
        device,
        folder,
        make_tokenizer(),
        model=str(make_folder(folder / "model")),
        dtype=getattr(torch, faster_dtype(torch.device(device))),
        rounds=1,
        shapes={f"{size} B": LlamaConfig(**sizes, num_hidden_layers=depth) for size, depth in ((1, 2), (8, 3))},
        row_tokens=512,
        triplets=4,
        kernel_sizes=((64, 32, 320),),
        sentences=16,
        run={"triplet_limit": 8, "held_out": 2, "dev_pairs": 4, "eval_every": 1000, "retention": 0.0},
    )


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)[:200]}"


def free_memory() -> None:
    gc.collect()
    # After some errors nothing on the device works any more; what was measured before is still to be written.
    with contextlib.suppress(Exception):
        torch.cuda.empty_cache()


def caption_batch(s: Setting, config: Config, count: int) -> Batch:
    triplets = caption_triplets("train", count)
    preferences = [encode_triplet(s.tokenizer, triplet, one_word=True) for triplet in triplets]
    return make_batch(replace(config, batch_size=count), preferences, 0)


def kernel_inputs(s: Setting, dtype: torch.dtype, n: int, d: int, v: int) -> tuple[Tensor, Tensor, Tensor]:
    return kernel._inputs(argparse.Namespace(device=s.device, trained=False), dtype_name(dtype), n, d, v)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
