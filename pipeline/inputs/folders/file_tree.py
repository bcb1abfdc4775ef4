"""The files below a folder, or those that a pattern names. Links to folders are followed on a local disk.

fsspec's own `cat`, `get`, `rm` and `glob` take brackets, asterisks and question marks in a path for a pattern, also in
names that have them literally (`Title [id].mp4`). Nothing here, and nothing that calls it, gives them such a path.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.utils import glob_translate

from pipeline.inputs import refusals
from pipeline.storage.stores import join

MAGIC = "*?[{"  # what makes a path a pattern
MOST_LINKS = 10_000  # linked folders below one place; more are links that lead to each other

Entry = Mapping[str, Any]  # of a listing, as fsspec gives it


@dataclasses.dataclass
class Tree:
    """Files by path, as a listing tells of them, and the folders that were not read."""

    entries: dict[str, Entry] = dataclasses.field(default_factory=dict)
    outside: list[str] = dataclasses.field(default_factory=list)  # links to folders outside data.base
    closed: list[str] = dataclasses.field(default_factory=list)  # folders that may not be read


def below(fs: fsspec.AbstractFileSystem, folder: str, base: str | None, depth: int | None = None) -> Tree:
    """All files below a folder, `depth` levels deep (null: all). On a local disk hidden folders are passed over, and
    links to folders are followed: each real folder counts once along a path, so that links in a circle end.

    Raises PermissionError where the folder itself may not be read, ValueError where its links lead to no end.
    """
    tree = Tree()
    if "file" not in fs.protocol:
        tree.entries = fs.find(folder, maxdepth=depth, detail=True)
        return tree
    links = 0
    todo: list[tuple[str, int, frozenset[tuple[int, int]]]] = [(folder, 1, frozenset())]
    while todo:
        path, level, above = todo.pop()
        try:
            status = os.stat(path)
            listing = fs.ls(path, detail=True)
        except PermissionError:
            if path == folder:
                raise
            tree.closed.append(path)
            continue
        except FileNotFoundError:  # it went while its parent was read
            if path == folder:
                raise
            continue
        within = above | {(status.st_dev, status.st_ino)}
        for entry in listing:
            name = str(entry["name"])
            linked = bool(entry.get("islink")) and os.path.isdir(name)
            if entry["type"] != "directory" and not linked:
                tree.entries[name] = entry
                continue
            if posixpath.basename(name).startswith(".") or level == depth:
                continue
            if linked and _identity(name) in within:
                continue
            if linked and refusals.of_place(join(name, "any"), base):  # the base itself is not outside it
                tree.outside.append(name)
                continue
            links += linked
            if links > MOST_LINKS:
                raise ValueError(f"more than {MOST_LINKS} links to folders lie below it, as links to each other make")
            todo.append((name, level + 1, within))
    return tree


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def matching(fs: fsspec.AbstractFileSystem, pattern: str, base: str | None = None) -> tuple[str, Tree]:
    """The folder that paths are relative to, and the files that a pattern names.

    Where a folder or file has the very name, brackets and all, it is meant, and no pattern: `clips [v2]/*.mp4`.
    `{000..012}` and `{a,b}` stand for several names.
    """
    head, rest = _fixed(fs, pattern)
    tree = Tree()
    for one in braced(rest):
        if fs.isfile(head + one):
            tree.entries[head + one] = fs.info(head + one)
        elif any(c in one for c in "*?["):
            part = _matching(fs, head, one, base)
            tree.entries |= part.entries
            tree.outside += part.outside
            tree.closed += part.closed
    return head.rstrip("/") or head, tree


def _fixed(fs: fsspec.AbstractFileSystem, pattern: str) -> tuple[str, str]:
    """The folder that a pattern starts from, with its slash, and the pattern of what is below it."""
    parts = pattern.split("/")
    count = 0
    while count < len(parts) - 1:
        folder = "/".join(parts[: count + 1])
        if any(c in parts[count] for c in MAGIC) and not fs.isdir(folder):
            break
        count += 1
    return "".join(f"{part}/" for part in parts[:count]), "/".join(parts[count:])


def _matching(fs: fsspec.AbstractFileSystem, head: str, pattern: str, base: str | None) -> Tree:
    head, rest = _fixed(fs, head + pattern)  # each choice of a brace may begin in a folder of its own
    if "file" not in fs.protocol:
        escaped = re.sub(r"[*?\[]", lambda c: f"[{c[0]}]", head)
        return Tree(dict(fs.glob(escaped + rest, detail=True)))
    start = head.rstrip("/") or "/"
    if not fs.isdir(start):
        return Tree()
    tree = below(fs, start, base, None if "**" in rest else rest.count("/") + 1)
    matches = re.compile(glob_translate(rest))
    tree.entries = {p: entry for p, entry in tree.entries.items() if matches.match(p.removeprefix(head))}
    return tree


def braced(pattern: str) -> list[str]:
    """What a pattern with braces stands for, as WebDataset writes it: shard-{000..012}.tar, {a,b}.tar."""
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if brace is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    if numbers:
        first, last = numbers.groups()
        choices = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        choices = brace[1].split(",")
    return [one for c in choices for one in braced(pattern[: brace.start()] + c + pattern[brace.end() :])]
