"""The pages of the documentation, taken apart: blocks, code spans, headings and links."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: `language` and the `mark` after it stand on the fence; `line` is that of the fence, from 1.

    `output` is the `text` block that follows with nothing between; None where there is none.
    """

    page: Path
    line: int
    language: str
    mark: str
    text: str
    output: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    fences = list(FENCE.finditer(text))
    page_blocks = []
    for match, following in itertools.zip_longest(fences, fences[1:]):
        language, _, mark = match[1].partition(" ")
        line = text.count("\n", 0, match.start()) + 1
        output = None
        if following is not None and following[1] == "text" and not text[match.end() : following.start()].strip():
            output = following[2]
        page_blocks.append(Block(page, line, language, mark, match[2], output))
    return page_blocks


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def spans(page: Path) -> list[str]:
    """The code spans of the prose."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def code(page: Path) -> Iterator[str]:
    """Everything that a reader might type: shell blocks with their lines joined, and code spans."""
    for block in blocks(page):
        if block.language == "bash":
            yield block.text.replace("\\\n", " ")
    yield from spans(page)


def anchors(page: Path) -> set[str]:
    """The names of a page's headings in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))
