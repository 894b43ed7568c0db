"""MkDocs hook: equations are written as text, `Σ_{j≥k} e^{r_j}`; a page shows them with sub- and superscripts.

That needs neither a script in the page nor a request, and the source reads alike in a terminal.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

# A block of code, a piece of it within a line, another tag, or the text between.
PIECE = re.compile(r"<pre>.*?</pre>|<code>.*?</code>|<[^>]*>|[^<]+", re.DOTALL)
# What tells an equation from code.
SYMBOL = re.compile(r"[πσβτμΣΠΔ∂ℓ∫⟨≤≥≻−‖₀]")
BRACES = re.compile(r"([_^])\{([^{}]*)\}")
SUPERSCRIPT = re.compile(r"\^([A-Za-z0-9λ∞]+)")
# The base is one letter, or an operator over one letter, so that no name in the code is torn apart.
SUBSCRIPT = re.compile(
    r"(?<![A-Za-z0-9_])(?:([A-Za-zα-ωΑ-Ωℓ][⁺⁻*]?)_(&lt;[a-z]|[A-Za-zπ0-9]{1,6})"
    r"|(argmin|max|min|softmax)_([a-zA-Zπ]))(?!\w)"
)


def on_page_content(html: str, page: "Page", **_: object) -> str:
    """The page's HTML with its equations typeset; the pages of source files stay as they are."""
    return html if page.file.src_uri.startswith("source/") else PIECE.sub(_piece, html)


def typeset(text: str) -> str:
    """Sub- and superscripts for `_{…}`, `^{…}`, `r_j` and `e^x` in a text of HTML without tags."""
    changed = 1
    while changed:
        # The innermost braces first.
        text, changed = BRACES.subn(lambda match: _script(match[1], match[2]), text)
    text = SUBSCRIPT.sub(lambda match: (match[1] or match[3]) + _script("_", match[2] or match[4]), text)
    return SUPERSCRIPT.sub(lambda match: _script("^", match[1]), text)


def _script(mark: str, text: str) -> str:
    tag = "sub" if mark == "_" else "sup"
    return f"<{tag}>{text}</{tag}>"


def _piece(match: re.Match[str]) -> str:
    piece = match[0]
    if piece.startswith("<pre>"):
        # What has a language is coloured, in spans with a class.
        if "<span class" in piece or not SYMBOL.search(piece):
            return piece
        return re.sub("<[^>]*>|[^<]+", _text, piece).replace("<pre>", '<pre class="equation">', 1)
    if piece.startswith("<code>"):
        return re.sub("<[^>]*>|[^<]+", _text, piece) if SYMBOL.search(piece) else piece
    return _text(match)


def _text(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith("<") else typeset(match[0])
