"""A manifest that is one document of JSON: a list of objects, or an object with a caption for each file.

DiffSynth, finetrainers, LTX-2 and FastVideo write such lists; diffusion-pipe and ai-toolkit write the other form, where
a file's value is its caption, a list of captions, or an object with them.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.config.texts import decode_text
from pipeline.inputs import extensions
from pipeline.inputs.manifests.json_blocks import Kinds, block_of, distinct
from pipeline.inputs.manifests.text_blocks import collection_paused
from pipeline.inputs.video_columns import check_text

log = logging.getLogger(__name__)

LARGEST = 1 << 30  # bytes: a document is in memory as a whole
ROWS = 50_000  # of a block


def blocks(file: BinaryIO, kinds: Kinds) -> Iterator[pa.Table]:
    """Blocks of rows as `json_blocks.blocks` gives them; LINE counts the entries from 1. Raises ValueError."""
    with collection_paused():
        listed = rows_of(document(file))
        # A row that stands several times is one of more weight.
        numbers = {json.dumps(row, sort_keys=True): place for place, row in reversed(list(enumerate(listed, 1)))}
        places = sorted(numbers.values())
    if len(places) < len(listed):
        log.warning("%d rows are repeated, as by weight; each counts once.", len(listed) - len(places))
    for start in range(0, len(places), ROWS):
        part = places[start : start + ROWS]
        try:
            block = block_of([listed[place - 1] for place in part], part, kinds)
        except ValueError as error:  # it takes the numbers for those of lines
            raise ValueError(re.sub(r"\bline (?=\d)", "entry ", str(error))) from error
        yield block


def captions(file: BinaryIO) -> dict[str, list[str]]:
    """The captions of an object whose keys are files. Raises ValueError for any other document."""
    listed = document(file)
    if not is_map(listed):
        raise ValueError("it is no object with a caption, or a list of captions, for each video file")
    texts: dict[str, list[str]] = {}
    for name, value in listed.items():
        own = [value] if isinstance(value, str) else value
        if own is None:
            continue
        if not isinstance(own, list) or not all(isinstance(text, str) for text in own):
            raise ValueError(
                f"the value of {name!r} is {json.dumps(value)[:40]}; it must be a caption, or a list of them"
            )
        for text in own:
            check_text(text)
        texts[name] = [text.strip() for text in own if text.strip()]
    return texts


def document(file: BinaryIO) -> Any:
    """A document of JSON. Raises ValueError."""
    data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes, all of which would be in memory; write it as .jsonl")
    try:
        return json.loads(decode_text(data), object_pairs_hook=distinct)
    except RecursionError:
        raise ValueError("its values lie too deep within each other") from None


def rows_of(listed: Any) -> list[dict[str, Any]]:
    """The rows of a list of objects, or of an object whose keys are files. Raises ValueError for anything else."""
    if is_map(listed):
        return [{"file_name": name, **_said(name, value)} for name, value in listed.items()]
    if not isinstance(listed, list) or not listed:
        raise ValueError("it is neither a list of objects, one a video, nor an object with a caption for each file")
    for place, row in enumerate(listed, 1):
        if not isinstance(row, dict):
            raise ValueError(f"entry {place} of its list is no object but {json.dumps(row)[:40]}")
    return listed


def is_map(listed: Any) -> bool:
    """Whether a document is an object whose keys are the names of video files."""
    return isinstance(listed, dict) and bool(listed) and all(is_video(name) for name in listed)


def is_video(name: str) -> bool:
    return name.lower().endswith(extensions.VIDEOS)


def _said(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    if isinstance(value, list):
        return {"captions": value}
    if value is None or isinstance(value, str):
        return {"caption": value}
    raise ValueError(f"the value of {name!r} is {json.dumps(value)[:40]}; it must be a caption, or a list of captions")
