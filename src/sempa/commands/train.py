"""Align a LoRA adapter by sentence-level DPO, evaluate it, and write adapter, metrics and report."""

import argparse
import shlex
from functools import partial
from pathlib import Path

from sempa.errors import SempaError
from sempa.io.files import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.epilog = "Example: sempa train experiments/smollm2_nli.yaml triplets=nli_for_simcse.csv output=runs/nli"
    parser.add_argument("config", nargs="?", type=user_path, metavar="CONFIG.yaml", help="flat YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    parser.add_argument("--resume", type=user_path, metavar="RUN", help="resume the interrupted run in this folder")


def run(arguments: argparse.Namespace) -> None:
    """Train in a new run folder, or go on in one."""
    from sempa.config import load_config
    from sempa.run import resume_run, start_run
    from sempa.training.checkpoints import checkpoint_files

    if (arguments.config is None) == (arguments.resume is None):
        raise SempaError("train: give a CONFIG.yaml, or --resume RUN, which takes its settings from the run")
    if arguments.resume is not None:
        folder, given = arguments.resume, ["--resume", str(arguments.resume)]
        start = partial(resume_run, folder)
    else:
        config = load_config(arguments.config, arguments.overrides)
        folder, given = Path(config.output), [str(arguments.config), *arguments.overrides]
        if (own := folder / "config.yaml").exists() and own.samefile(arguments.config):
            raise SempaError(f"{own}: would be overwritten; resume its run with --resume, or give another output=…")
        start = partial(start_run, config)
    try:
        start(shlex.join(["sempa", "train", *given]))
    except KeyboardInterrupt:
        # A second Ctrl-C, or one while the report is made, may come before anything is saved.
        if not checkpoint_files(folder):
            raise KeyboardInterrupt from None
        again = shlex.join(["sempa", "train", "--resume", str(folder)])
        raise KeyboardInterrupt(f"stopped and saved; resume with: {again}") from None
