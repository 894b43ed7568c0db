"""Where a figure comes from: the date, the versions of the packages and the machine that it was computed with."""

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from sempa import __version__


def origin(device: str | None = None) -> dict:
    """What is stored beside a figure: `date`, `versions`, and `machine`.

    The machine's entries are processor, cores, threads, memory in GiB, and `device`, CUDA where there is one.
    """
    names = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")
    versions = {"python": platform.python_version(), "sempa": __version__} | {name: version(name) for name in names}
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(models, platform.processor() or platform.machine())
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    machine = {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }
    return {"date": datetime.date.today().isoformat(), "versions": versions, "machine": machine}
