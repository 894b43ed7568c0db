"""The folder tree: a room imports from the rooms above it alone, and few files lie flat."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "sempa"
# From the text to the command line; the pure functions of losses and kernels are below all of them.
ORDER = (
    *("errors", "config", "io", "data", "batching", "model", "training", "embedding", "evaluation", "report", "export"),
    *("integrations", "theory", "run", "commands", "cli", "verify_theory", "__main__"),
)
MODULES = sorted(SOURCE.rglob("*.py"))


def room_of(module: str) -> str:
    """The second part of a dotted name: `sempa.model.lora` is in `model`."""
    return module.split(".")[1]


def imports(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of every import of sempa's own modules, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "sempa":
            found += [(node.lineno, f"sempa.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append((node.lineno, node.module))
    return [(line, name) for line, name in found if name.startswith("sempa.")]


def test_every_room_imports_only_from_rooms_above_it():
    broken = []
    for path in MODULES:
        place = path.relative_to(SOURCE)
        own = place.parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for line, name in imports(path):
            other = room_of(name)
            if other in ("losses", "kernels", "SempaError", "Embedder", "__version__"):
                continue
            if ORDER.index(other) > ORDER.index(own):
                broken.append(f"{place}:{line} imports {name}")
    assert not broken, "\n".join(broken)


def test_a_breach_would_be_found(tmp_path):
    path = tmp_path / "low.py"
    path.write_text("def f():\n    from sempa.report import plots\n    import sempa.cli\nfrom sempa import run\n")
    assert sorted(imports(path)) == [(2, "sempa.report"), (3, "sempa.cli"), (4, "sempa.run")]
    assert room_of("sempa.report.plots") == "report"


def test_few_files_lie_flat_and_no_module_is_longer_than_one_idea():
    assert len(list(SOURCE.glob("*.py"))) <= 8
    for path in MODULES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 320, path.name


def test_the_step_and_its_losses_fit_one_screen_each():
    tree = ast.parse((SOURCE / "training" / "step.py").read_text(encoding="utf-8"))
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in tree.body if isinstance(node, ast.FunctionDef)}
    named = [lengths[name] for name in ("train_step", "preference_loss", "contrast_loss", "retention_loss")]
    assert sum(named) <= 150
    assert max(named) <= 50


@pytest.mark.parametrize("module", ["sempa.config", "sempa.cli"])
def test_help_and_config_do_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
