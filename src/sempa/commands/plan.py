"""`sempa plan`: what a run will take, before it is started."""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "plan",
        help="print what a training run will take, without starting it",
        description="Print parameters, memory, FLOPs, tokens and hours on named GPUs, without loading weights.",
        epilog="Example: sempa plan experiments/paper_llama2_7b.yaml --efficiency 0.4",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="flat YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    parser.add_argument(
        "--efficiency",
        type=float,
        default=0.4,
        help="share of the GPU's dense bfloat16 peak that training reaches (default %(default)s)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the plan."""
    from sempa.config import load_config
    from sempa.errors import SempaError
    from sempa.plan import describe_plan, make_plan

    if not 0 < arguments.efficiency <= 1:
        raise SempaError(f"--efficiency is {arguments.efficiency}, expected a share above 0, at most 1")
    print(describe_plan(make_plan(load_config(arguments.config, arguments.overrides)), arguments.efficiency))
