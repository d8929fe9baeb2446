"""MkDocs calls this while it builds the site: it fills the reference pages, and refuses loads from other hosts."""

from __future__ import annotations

import re
from typing import Any

import reference
from mkdocs.exceptions import PluginError

LOADED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
NOT_LOADED = re.compile(r"rel=[\"']?(?:canonical|prev|next|alternate)\b")
"""Links in the head of a page that a browser does not fetch."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts generated text in place of the markers of a page."""
    return reference.fill(markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuses a page that would make its reader's browser ask another host for something."""
    loaded = [tag for tag in LOADED.findall(output) if not NOT_LOADED.search(tag)]
    if loaded:
        raise PluginError(f"{page.file.src_uri} loads from another host: {loaded[0]}")
    return output
