"""HTML pages from the templates in `pages/`, with all that a user or a model wrote escaped."""

import json

from jinja2 import Environment, PackageLoader

from sempa.report.tables import number, signed, signed_percent

_PAGES = Environment(loader=PackageLoader("sempa.report", "pages"), autoescape=True, trim_blocks=True)
_PAGES.filters |= {
    "number": number,
    "signed": signed,
    "signed_percent": signed_percent,
    "pretty": lambda data: json.dumps(data, indent=2, ensure_ascii=False),
}


def render(page: str, **content: object) -> str:
    """The page of that name with its content."""
    return _PAGES.get_template(page).render(content)
