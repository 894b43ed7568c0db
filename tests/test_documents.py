"""The documents: links lead somewhere, the API page names all that is public, equations are typeset and code is not."""

import contextlib
import io
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from sempa.cli import COMMANDS, main
from sempa.config import load_config

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("experiments/*/*.md")]
LINK = re.compile(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)")
sys.path.insert(0, str(DOCS))
try:
    from equations import on_page_content, typeset
finally:
    sys.path.remove(str(DOCS))


def test_every_link_leads_to_a_file():
    links = [(page, target) for page in PAGES for target in LINK.findall(page.read_text(encoding="utf-8"))]
    assert len(links) > 50
    assert not [(page.name, target) for page, target in links if not (page.parent / target).exists()]


def test_every_page_stands_in_the_menu():
    menu = re.findall(r"^  - .*: (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(menu) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_api_page_names_all_that_is_public():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    # A function named like its module is found in that module.
    entries = re.findall(r"^::: (\S+)(?:\n    options:\n      heading: (\S+))?$", page, flags=re.MULTILINE)
    entries = [(entry, heading or entry) for entry, heading in entries]
    public = {
        f"{package}.{name}"
        for package in ("sempa", "sempa.losses", "sempa.kernels")
        for name in import_module(package).__all__
        if not name.startswith("_")
    }
    assert {heading for _, heading in entries} == public
    for entry, heading in entries:
        (package, name), (owner, _, own) = heading.rsplit(".", 1), entry.rpartition(".")
        assert getattr(import_module(owner), own) is getattr(import_module(package), name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Σ_{j≥k} e^{r_j} − r_k", "Σ<sub>j≥k</sub> e<sup>r<sub>j</sub></sup> − r<sub>k</sub>"),
        ("log π_ref(y⁺_&lt;k)", "log π<sub>ref</sub>(y⁺<sub>&lt;k</sub>)"),
        ("π^{1−λ} π_ref^λ", "π<sup>1−λ</sup> π<sub>ref</sub><sup>λ</sup>"),
        ("argmin_π E_π[r*] e^{r*_k}", "argmin<sub>π</sub> E<sub>π</sub>[r*] e<sup>r*<sub>k</sub></sup>"),
        ("token_kl, max_length, e.g. x_", "token_kl, max_length, e.g. x_"),
    ],
)
def test_sub_and_superscripts(text, expected):
    assert typeset(text) == expected


def test_code_is_left_alone():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="theory.md"))
    for html in (
        '<pre><span></span><code><span class="n">x_i</span> = "π"\n</code></pre>',
        "<pre><span></span><code>sempa table --x_y\n</code></pre>",
        '<code>x_i</code> <a href="#e^x_i">…</a>',
    ):
        assert on_page_content(html, page) == html
    assert on_page_content("<pre><code>σ(r_j)</code></pre>", page) == (
        '<pre class="equation"><code>σ(r<sub>j</sub>)</code></pre>'
    )
    assert on_page_content("<code>σ(r_j)</code>", page) == "<code>σ(r<sub>j</sub>)</code>"


def test_the_maps_program_prints_what_the_page_says():
    program, printed = re.findall(r"```(?:python)?\n(.*?)```", (DOCS / "map.md").read_text(encoding="utf-8"), re.DOTALL)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(program, "docs/map.md", "exec"), {})
    assert output.getvalue() == printed


def commands():
    """Every `sempa …` line of the documents' blocks of code, as the arguments that the program gets."""
    for page in (*PAGES, *(ROOT / "experiments").glob("*/README.md")):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?:\.venv/bin/sempa|\.venv/bin/torchrun .*-m sempa) (.*)$", text, flags=re.MULTILINE):
            yield page.name, shlex.split(line, comments=True)


def test_every_command_is_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    ran = []
    for name in (name for group in COMMANDS.values() for name in group):
        module = import_module(f"sempa.commands.{name.replace('-', '_')}")
        monkeypatch.setattr(module, "run", lambda arguments: ran.append(arguments))
    for page, arguments in commands():
        assert main(arguments) == 0, (page, arguments)
        if getattr(ran[-1], "config", None):
            load_config(Path(ran[-1].config), ran[-1].overrides)
    assert len(ran) > 30


def test_pictures_stand_on_the_pages_own_ground():
    """Their ink follows the page's colour scheme; a ground of their own would not."""
    assert "background" not in (DOCS / "style.css").read_text(encoding="utf-8")


def test_the_documents_are_short():
    """A page that grows beyond this wants to be two, or a table of it to be a file among the results."""
    words = {page: len(page.read_text(encoding="utf-8").split()) for page in (ROOT / "README.md", *DOCS.glob("*.md"))}
    assert sum(words.values()) < 11_000
    lines = {page: page.read_text(encoding="utf-8").count("\n") for page in words}
    assert lines[ROOT / "README.md"] <= 120
    assert max(lines.values()) <= 300
