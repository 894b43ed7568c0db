"""A run folder to export: an adapter that matters, and a report."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sempa.model.adapter_files import save_adapter
from sempa.model.base import load_base
from sempa.model.lora import add_lora, lora_parameters


def make_adapter(model: PreTrainedModel, folder: Path, source: str | Path) -> None:
    add_lora(model, 2, 8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    save_adapter(model, folder, str(source), "prompteol")


def make_run(folder: Path, base: Path) -> Path:
    make_adapter(load_base(str(base), "float32", "cpu").model, folder / "adapter", base)
    report = {
        "model": str(base),
        "sts": [
            {"task": "STS-B dev", "pairs": 1500, "base": 73.84, "aligned": 77.31, "change_interval": (1, 5), "p": 0.001}
        ],
        "drift": [
            {
                "text": "passages",
                "tokens": 9,
                "base_perplexity": 50.0,
                "aligned_perplexity": 49.0,
                "change": -0.02,
                "kl": 0.1,
                "agreement": 0.9,
            }
        ],
        "config": {"dtype": "float32", "beta": 0.1, "triplets": "/home/somebody/nli.csv", "output": "/home/somebody/r"},
        "training": {
            "used": 1280,
            "held_out": 20,
            "steps": 40,
            "best_step": 30,
            "source": "/home/somebody/nli.csv",
        },
        "machine": {"cpu": "a processor", "device": "cpu", "dtype": "float16"},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return folder
