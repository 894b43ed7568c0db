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
# `](../losses/dpo.py)`: what a page of docs/ calls a file outside of docs/.
LINK = re.compile(r"\]\(\.\./([^)#\s]+)\)")
PICTURES = (".svg", ".png")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cfg": "ini", ".json": "json"}


def on_files(files: Files, config: "MkDocsConfig") -> Files:
    """Add a page for every file of the repository that some page links to; a folder's page lists its files."""
    targets = {target for page in files.documentation_pages() for target in LINK.findall(page.content_string)}
    for target in sorted(targets):
        path = ROOT / target
        if path.is_dir():
            targets |= {child.relative_to(ROOT).as_posix() for child in path.iterdir() if child.suffix in LANGUAGES}
    for target in sorted(targets):
        content = (ROOT / target).read_bytes() if target.endswith(PICTURES) else _page(target)
        files.append(File.generated(config, _address(target), content=content))
    return files


def on_page_markdown(markdown: str, page: "Page", **_: object) -> str:
    """Let the links lead to the added pages."""
    here = posixpath.dirname(page.file.src_uri)
    return LINK.sub(lambda link: f"]({posixpath.relpath(_address(link[1]), here or '.')})", markdown)


def _address(target: str) -> str:
    return f"{FOLDER}/{target.rstrip('/')}" + ("" if target.endswith(PICTURES) else ".md")


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
