"""Writes a page as one file: template, style, programs and data, with nothing from outside."""

from __future__ import annotations

import html
import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from rwkv_train.files import write_atomically

REPORT_FILE = "report.html"
_TEMPLATE = "report_page.html"
_STYLE = "report_page.css"
# In the order in which they need one another.
SCRIPTS = (
    *("chart_scales.js", "page_elements.js", "chart_drawing.js", "chart_reading.js"),
    "report_page.js",
)
# Ends the element that holds the data, begins a comment in it, or ends a line of older JavaScript.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def write_page(path: Path, document: dict[str, Any]) -> None:
    """Writes a page: afterwards `path` holds all of it or what it held before. Raises OSError."""
    # Half of a UTF-16 pair in a folder's name has no place in a file.
    write_atomically(path, page_text(document).encode("utf-8", "replace"))


def page_text(document: dict[str, Any]) -> str:
    """Returns a page as HTML; no text of `document` is taken for markup or program."""
    parts = {
        "title": html.escape(document["title"]),
        "style": _style(),
        "script": _program(),
        "data": page_data(document),
        "summary": _summary(document),
    }
    # One pass: what is put in is not searched for more places.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _template())


def page_data(document: dict[str, Any]) -> str:
    """Returns a document as JSON that may stand inside an element of HTML."""
    # ensure_ascii: line separators and halves of UTF-16 pairs are spelled out too.
    text = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign, escape in _ESCAPES.items():
        text = text.replace(sign, escape)
    return text


def _summary(document: dict[str, Any]) -> str:
    """Returns the page's figures for who has switched programs off."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(tile["label"])}</th>'
        f"<td>{html.escape(tile['value'])} {html.escape(tile['note'])}</td></tr>"
        for tile in document["tiles"]
    )
    return f"<table><caption>{html.escape(document['subtitle'])}</caption>{rows}</table>"


@cache
def _template() -> str:
    return _packaged(_TEMPLATE)


@cache
def _style() -> str:
    return _packaged(_STYLE)


@cache
def _program() -> str:
    return "\n".join(map(_packaged, SCRIPTS))


def _packaged(name: str) -> str:
    return files("rwkv_train.report").joinpath(name).read_text(encoding="utf-8")
