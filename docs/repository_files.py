"""MkDocs hook: links to the repository's own files lead to pages with their text, pictures to themselves."""

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "source"
# `](../losses/dpo.py)`, `](README.md#results)`: a link to a file, not to an address.
LINK = re.compile(r"\]\(([^)#\s:]+)(#[^)\s]*)?\)")
PICTURES = (".svg", ".png")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cfg": "ini", ".json": "json"}


def on_files(files: Files, config: "MkDocsConfig") -> Files:
    """Add a page for every file of the repository that a page links to; a folder's page lists its files."""
    added: set[str] = set()
    waiting = [t for page in files.documentation_pages() for t in _targets(f"docs/{page.src_uri}", page.content_string)]
    while waiting:
        target = waiting.pop()
        path = ROOT / target
        if target in added:
            continue
        added.add(target)
        if path.is_dir():
            waiting += [f"{target}/{child.name}" for child in path.iterdir() if child.suffix in LANGUAGES]
        elif path.suffix == ".md":
            waiting += _targets(target, path.read_text(encoding="utf-8"))
    for target in sorted(added):
        content = (ROOT / target).read_bytes() if target.endswith(PICTURES) else _page(target)
        files.append(File.generated(config, _address(target), content=content))
    return files


def on_page_markdown(markdown: str, page: "Page", **_: object) -> str:
    """Let the links lead to the added pages."""
    address = page.file.src_uri
    source = address.removeprefix(f"{FOLDER}/").removesuffix(".md") if address.startswith(FOLDER) else f"docs/{address}"
    if not source.endswith(".md"):
        return markdown

    def link(match: re.Match[str]) -> str:
        (target,) = _targets(source, match[0]) or [""]
        if target:
            there = _address(target)
        else:
            there = _join(source, match[1]).removeprefix("docs/")
        return f"]({posixpath.relpath(there, posixpath.dirname(address) or '.')}{match[2] or ''})"

    return LINK.sub(link, markdown)


def _targets(source: str, text: str) -> list[str]:
    """The files outside of docs/'s pages that a page's text links to, by their paths in the repository."""
    paths = [_join(source, link[1]) for link in LINK.finditer(text)]
    pages = [path.startswith("docs/") and path.endswith(".md") for path in paths]
    return [path for path, page in zip(paths, pages, strict=True) if not page and (ROOT / path).exists()]


def _join(source: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _address(target: str) -> str:
    return f"{FOLDER}/{target}" + ("" if target.endswith(PICTURES) else ".md")


def _page(target: str) -> str:
    path = ROOT / target
    if path.is_dir():
        children = sorted(child.name for child in path.iterdir() if child.suffix in LANGUAGES)
        return _plain(target) + "\n".join(f"* [{name}]({path.name}/{name}.md)" for name in children) + "\n"
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    # A fence longer than any in the text itself.
    fence = "`" * (3 + max(map(len, re.findall("`+", text)), default=0))
    return f"{_plain(target)}{fence}{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def _plain(target: str) -> str:
    """Title, and nothing for the search: the pages that link here are what somebody looks for."""
    return f"---\nsearch:\n  exclude: true\nhide: [toc]\n---\n# `{target}`\n\n"
