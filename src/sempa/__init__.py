"""Semantic Preference Alignment (SemPA, arXiv 2601.05075): sentence-level DPO that makes a chat LLM embed."""

from sempa.errors import SempaError

__version__ = "0.1.0"
__all__ = ["SempaError", "__version__"]
