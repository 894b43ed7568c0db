"""The README.md of an exported model: what it is, how to use it, what was measured, on what, and what it cannot do."""

import sys
from pathlib import Path

from jinja2 import Environment, PackageLoader

from sempa import __version__
from sempa.batching.prompts import EOL_PREFIX, EOL_SUFFIX, begin_of_text
from sempa.io.files import read_json
from sempa.model.adapter_files import adapter_readout, read_adapter
from sempa.model.base import BaseModel
from sempa.model.forward import context_length
from sempa.report.render import markdown_table
from sempa.report.run_report import tables

_OF_ONE_MACHINE = ("model", "device", "output")
TEMPLATES = Environment(loader=PackageLoader("sempa.export", "templates"), trim_blocks=True, keep_trailing_newline=True)
TEMPLATES.globals |= {"prefix": EOL_PREFIX, "suffix": EOL_SUFFIX, "version": __version__}
TEMPLATES.filters["file_name"] = lambda path: Path(path).name


def model_card(name: str, model: str, adapter: Path, base: BaseModel, kind: str) -> str:
    """The card as Markdown with its YAML head; figures come from the `report.json` of the run that holds the adapter.

    `name` is the exported folder's name, `model` the base model's, `base` what is exported, and `kind` as
    `sempa.export.folders.export_folder` takes it; the card of a `base` alone is a shorter one.
    """
    try:
        report = read_json(adapter.parent / "report.json")
        report = report if isinstance(report["training"], dict) and isinstance(report["config"], dict) else {}
        shown = [markdown_table(*table) for table in tables(report)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # An adapter from elsewhere has no report of ours, and a card without figures is still a card.
        report, shown = {}, []
    lora, _ = read_adapter(adapter)
    settings = {
        key: Path(str(value)).name
        for key, value in report.get("config", {}).items()
        if key not in _OF_ONE_MACHINE and value != ""
    }
    machine, context = report.get("machine") or {}, context_length(base.model)
    # A change that was no finite number is null in the report.
    drifts = [row for row in report.get("drift") or [] if row.get("change") is not None]
    # Anything but a hub id is a path; the card shows only its last part.
    on_hub = model.count("/") == 1 and not model.startswith((".", "/", "~")) and not Path(model).exists()
    return TEMPLATES.get_template("base.md" if kind == "base" else "model.md").render(
        name=name,
        adapter=adapter.name,
        kind=kind,
        base_name=model if on_hub else Path(model).resolve().name,
        on_hub=on_hub,
        report=report,
        settings=settings or {"LoRA rank": lora["r"], "LoRA alpha": f"{lora['lora_alpha']:g}"},
        tables=shown,
        device=machine.get("cpu") if machine.get("device") == "cpu" else machine.get("device"),
        readout=adapter_readout(adapter),
        dtype=str(base.model.dtype).removeprefix("torch."),
        context=context if context < sys.maxsize else None,
        begins=begin_of_text(base.tokenizer),
        control_token=base.tokenizer.eos_token or base.tokenizer.bos_token,
        worst=max(drifts, key=lambda row: row["change"], default=None),
    )
