"""Where the page of an explained clip lies, and how to ask for it."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from urllib.parse import quote

import yaml

from pipeline.config import overrides
from pipeline.config.files import parse
from pipeline.storage import stores


def name(clip_id: str) -> str:
    """A folder's name for any clip id, which may be whatever a manifest says: slashes, dots and all."""
    plain = re.sub(r"[^\w.-]", "_", clip_id, flags=re.ASCII)[:80].lstrip(".")
    return (
        plain
        if plain and plain == clip_id
        else f"{plain}-{hashlib.blake2b(clip_id.encode(), digest_size=6).hexdigest()}"
    )


def folder(root: str, clip_id: str) -> str:
    return stores.join(root, "explain", name(clip_id))


def links(root: str, ids: Sequence[str]) -> dict[str, str]:
    """The pages of those of the clips that have one, as a page in a folder of the run's root links to them."""
    names = {path.rstrip("/").rsplit("/", 1)[-1] for path in stores.files(stores.join(root, "explain"))}
    page_ids = [i for i in ids if name(i) in names and stores.exists(stores.join(folder(root, i), "index.html"))]
    return {i: f"../explain/{quote(name(i))}/index.html" for i in page_ids}


def option(clip_id: str) -> str:
    """What names a clip on the command line of jobs.explain; quoted where the same id has to be quoted in YAML."""
    try:
        plain = parse(clip_id) == clip_id
    except yaml.YAMLError:
        plain = False
    value = overrides.written(clip_id) if plain else f'"{clip_id}"'
    return f"--set {shlex.quote(f'explain.clip={value}')}"
