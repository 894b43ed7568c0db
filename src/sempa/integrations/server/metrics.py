"""Counts for Prometheus, in its text format."""

from collections import Counter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FAMILIES = {
    "sempa_requests_running": ("gauge", "Requests under way."),
    "sempa_answers_running": ("gauge", "Answers being written."),
    "sempa_requests_total": ("counter", "Requests that ended, by path and HTTP status."),
    "sempa_request_seconds_total": ("counter", "Seconds from a request's head to the end of its answer, by path."),
    "sempa_sentences_total": ("counter", "Sentences embedded."),
    "sempa_batches_total": ("counter", "Batches that they were embedded in."),
    "sempa_prompt_tokens_total": ("counter", "Tokens read, by path."),
    "sempa_generated_tokens_total": ("counter", "Tokens written."),
}


class Metrics:
    """Sums since the start, by name and labels. Only the event loop's thread adds to them."""

    def __init__(self) -> None:
        self._sums: Counter[tuple[str, str]] = Counter()
        self.add("sempa_requests_running", 0)
        self.add("sempa_answers_running", 0)

    def add(self, name: str, amount: float = 1, **labels: object) -> None:
        """Add to the sum of that name; label values are the server's own words."""
        self._sums[name, ",".join(f'{label}="{value}"' for label, value in labels.items())] += amount

    def text(self) -> str:
        """All sums, as Prometheus reads them."""
        lines = []
        for name, (kind, description) in _FAMILIES.items():
            lines += [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]
            found = sorted((labels, value) for (own, labels), value in self._sums.items() if own == name)
            lines += [f"{name}{{{labels}}} {value}" if labels else f"{name} {value}" for labels, value in found]
        return "\n".join(lines) + "\n"
