"""Where a figure comes from: the date, the versions of the packages and the machine that it was computed with."""

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sempa import __version__


def processor() -> str:
    """The processor's name, such as `AMD EPYC`."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def origin(model: PreTrainedModel) -> dict:
    """What is stored beside a figure of a model: `date`, `versions`, and `machine`.

    The machine's entries are processor, cores, threads, memory in GiB, and the `device` and `dtype` computed in.
    """
    names = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")
    versions = {"python": platform.python_version(), "sempa": __version__} | {name: version(name) for name in names}
    machine = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    return {"date": datetime.date.today().isoformat(), "versions": versions, "machine": machine}
