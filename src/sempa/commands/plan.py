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
        help="share of the GPU's dense bfloat16 peak that training is taken to reach (default %(default)s)",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure the efficiency here: a packed row through two blocks of the model's width, random weights",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the plan."""
    from sempa.config import load_config
    from sempa.efficiency import describe_efficiency, measure_efficiency
    from sempa.errors import SempaError
    from sempa.plan import describe_plan, make_plan

    if not 0 < arguments.efficiency <= 1:
        raise SempaError(f"--efficiency is {arguments.efficiency}, expected a share above 0, at most 1")
    config = load_config(arguments.config, arguments.overrides)
    plan, efficiency = make_plan(config), arguments.efficiency
    if arguments.measure:
        measured = measure_efficiency(config)
        efficiency = measured.share
        print(describe_efficiency(measured))
    print(describe_plan(plan, efficiency))
