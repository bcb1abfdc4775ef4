"""What the columns of a manifest mean, and what the others are called in the tables of a run.

Names are read without regard to case and to blanks around them: `File_Name` is `file_name`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.tables.schemas import CAPTIONS, MASK_BOX, RESERVED, caption_column

VIDEO_IDS = ("videoid", "video_id")  # names of files without their end
PATHS = (
    *("file_name", "path", "video", "video_path", "url", "uri", "file"),
    *("media_path", "videos", "file_names", "video_file_name"),
    *("filename", "filepath", "file_path", "video path", "clip_path", *VIDEO_IDS),
)
LISTED_PATHS = ("videos", "file_names")  # lists of one: data-juicer's, and Hugging Face's

_UNUSABLE = re.compile(r"[.\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Columns:
    """Names of a manifest's columns, as they are written there; None where it has no such column."""

    path: str | None
    caption: str | None
    captions: str | None
    source: str | None
    group: str | None
    id: str | None
    version: str | None  # of a manifest that tells versions, as `size`
    size: str | None
    others: dict[str, str]  # those that pass through, and what they are called in tables

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns whose values are texts, whatever they look like; their captions may be lists of texts."""
        named = (self.path, self.caption, self.captions, self.source, self.group, self.id, self.version)
        return tuple(name for name in named if name is not None)

    @property
    def lists(self) -> tuple[str, ...]:
        """The columns that may hold several texts a row."""
        listed = self.path if str(self.path).strip().casefold() in LISTED_PATHS else None
        return tuple(name for name in (self.caption, self.captions, listed) if name is not None)


def columns(names: Sequence[str], with_paths: bool = True) -> Columns:
    """What the columns of these names mean. `with_paths`: one of them has the paths of videos, as in a manifest, and
    one perhaps their versions; else both pass through.

    Raises ValueError, naming both, for columns that would have one name in the tables.
    """
    written = _distinct(names)

    def first(listed: Iterable[str]) -> str | None:
        return next((written[name] for name in listed if name in written), None)

    versioned = with_paths and "version" in written and bool({"id", "size"} & written.keys())
    roles = {
        "path": first(PATHS) if with_paths else None,
        "caption": caption_column(names),
        **{name: first([name]) for name in ("captions", "source", "group", "id")},
        **{name: first([name]) if versioned else None for name in ("version", "size")},
    }
    others = {name: table_name(name, place) for place, name in enumerate(names, 1) if name not in roles.values()}
    _check_others(others)
    return Columns(**roles, others=others)


def table_name(name: str, place: int) -> str:
    """What the column of this name, the `place`-th from 1, is called in tables.

    Readers of Parquet take a dot for a path into a column, so that it becomes `_`, as control characters do. A column
    without a name is called by its place.
    """
    plain = _UNUSABLE.sub("_", " ".join(name.split())) or f"column {place}"
    if plain.casefold() == MASK_BOX:
        return MASK_BOX
    return f"manifest_{plain}" if plain.casefold() in RESERVED else plain


def _distinct(names: Sequence[str]) -> dict[str, str]:
    """Names as they are written by names without regard to case; unnamed columns are not among them."""
    written = dict[str, str]()
    for name in names:
        plain = name.strip().casefold()
        if not plain:
            continue
        if plain in written:
            other = written[plain]
            if name.strip() == other.strip():
                raise ValueError(f"it has the column `{name.strip()}` twice; keep one of them, or rename one")
            raise ValueError(
                f"its columns `{other}` and `{name}` differ in nothing but case, which SQL does not see; rename one"
            )
        written[plain] = name
    return written


def _check_others(others: dict[str, str]) -> None:
    written = dict[str, str]()
    for name, new in others.items():
        other = written.setdefault(new.casefold(), name)
        if other != name:
            raise ValueError(
                f"its columns `{other}` and `{name}` would both be called `{new}` in the tables (a name that tables "
                "have already becomes manifest_NAME, a dot becomes _); rename one"
            )


def described(names: Iterable[str]) -> str:
    """Names of columns for a message."""
    return ", ".join(name or "''" for name in names) or "none"


def check_described(columns: Columns, names: Sequence[str]) -> None:
    """Raise ValueError unless a manifest has a column with paths and one with captions."""
    if columns.path is None:
        raise ValueError(
            f"the manifest has no column with the videos' paths. It has {described(names)}; call one of them "
            f"{' | '.join(PATHS)}"
        )
    if columns.caption is None and columns.captions is None:
        raise ValueError(
            "the manifest has no column with captions, which the model is conditioned on. It has "
            f"{described(names)}; call one of them {' | '.join(CAPTIONS)} (captions: lists), or add an empty one"
        )
