"""Semantic Preference Alignment (SemPA, arXiv 2601.05075): sentence-level DPO that makes a chat LLM embed."""

from typing import TYPE_CHECKING

from sempa.errors import SempaError

if TYPE_CHECKING:
    from sempa.embedding.embedder import Embedder

__version__ = "0.2.0"
__all__ = ["Embedder", "SempaError", "__version__"]


def __getattr__(name: str) -> object:
    # Torch and transformers take seconds to import: `sempa --help` needs neither, `sempa.losses` only torch.
    if name == "Embedder":
        from sempa.embedding.embedder import Embedder

        return Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
