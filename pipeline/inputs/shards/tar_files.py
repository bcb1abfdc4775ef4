"""WebDataset's tar files: members of one name but for the extension, in whatever order, are a video and its words.

The words of `cats/clip.v1.mp4` are in `cats/clip.v1.txt` (or `.caption`, `.prompt`, ...) and `.json`. Where there are
none, they are in `cats/clip.txt` and `.json`: WebDataset's key ends at the first dot, and they belong to every video of
that key.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import fsspec

from pipeline.config.texts import decode_text
from pipeline.errors import ClipError
from pipeline.inputs import extensions
from pipeline.inputs.manifests.json_blocks import distinct
from pipeline.inputs.video_columns import Part, check_text, column_of, plain_name, plain_value, spellings
from pipeline.tables.schemas import caption_column

_HEADERS = 1 << 20  # bytes read at once while listing, at most: headers and captions are small, whatever they claim
_AHEAD = 1 << 16  # bytes that one request of a store brings while listing: a header, the words, the next header
_STRETCH = 64 << 20  # bytes that are in memory while a member is fetched
_END = 512  # bytes of a block; one of zeros ends an archive
# Ends of the members with a caption, as trainers' readers know them: where a video has several, the last one counts.
_KINDS = ("alt_", "long_", "short_", "video_", "")
_TEXTS = [f".{kind}{noun}" for kind in _KINDS for noun in ("description", "prompt", "text", "caption")]
CAPTIONS = (*_TEXTS, *(f"{end}s" for end in _TEXTS), ".cap", ".txt")
_WORDS = (".json", *CAPTIONS)  # where both have a caption, that of the text counts
_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"(\xb5/\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
)
UNPACK = "no video in a compressed tar can be read alone; unpack it, and name the folder or an uncompressed .tar"
# What tools put into archives for themselves: hidden files, macOS's ._NAME and __MACOSX, the headers of pax as files.
_HIDDEN = re.compile(r"(?:^|/)(?:\.(?!\.?(?:/|$))|__MACOSX(?:/|$)|PaxHeaders?(?:\.[0-9.]+)?(?:/|$))")

_HOSTILE = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError)  # from its headers

Row = dict[str, Any]
_Words = bytes | ClipError  # of a .txt or .json; the error where they cannot be had


class _Damaged(tarfile.TarError):
    """A header claims what no video's has."""


class _Headers(io.RawIOBase):
    """A file of which only small pieces are read: a header of 8 GB would otherwise be in memory at once."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADERS:
            raise _Damaged(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if not 0 <= offset <= self._size:
            raise _Damaged(f"a member that goes on to byte {offset} of {self._size}")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def listed(fs: fsspec.AbstractFileSystem, bare: str, shard: Row, largest: int) -> Part:
    """The rows of the videos in a tar and what their .json and .txt say, each key of the .json a column. A member that
    the file ends in, or one larger than `largest`, is a row with an error; so is the rest after a damaged header."""
    rows: dict[str, Row] = {}  # of two members of one name the later one counts, as when unpacking
    words: dict[str, _Words] = {}
    with fs.open(bare, "rb", block_size=_AHEAD, cache_type="readahead") as file:
        packed = _compression(file.read(_END))
        if packed:
            return Part(
                [{**shard, "error": f"refused: it is compressed ({packed}) in spite of its name; {UNPACK}"}], {}
            )
        file.seek(0)
        for member in _members(file, shard["size"]):
            if isinstance(member, str):
                row = {**shard, "relative": f"{shard['relative']}/", "error": member, "size": 0}
                rows[row["relative"]] = row
                break
            name = member.name.encode("utf-8", "backslashreplace").decode()  # not every byte of a name is text
            if _HIDDEN.search(name):
                continue
            if name.lower().endswith(extensions.VIDEOS):
                row = _video(member, name, shard, largest)
                rows[row["relative"]] = row
            elif name.lower().endswith(_WORDS):
                name = posixpath.normpath(name)
                words[name] = _read(file, member, name, shard["size"])
    return _matched(list(rows.values()), words, shard["relative"])


def texts(fs: fsspec.AbstractFileSystem, bare: str, size: int) -> dict[str, bytes | ClipError | None]:
    """The members of a tar of `size` bytes that holds words alone, by name: the bytes of each .json, or why they cannot
    be had; None for a member of another kind. Raises ValueError for a tar that is compressed, damaged or cut off."""
    contents: dict[str, bytes | ClipError | None] = {}
    with fs.open(bare, "rb", block_size=_AHEAD, cache_type="readahead") as file:
        packed = _compression(file.read(_END))
        if packed:
            raise ValueError(f"it is compressed ({packed}) in spite of its name; unpack it")
        file.seek(0)
        for member in _members(file, size):
            if isinstance(member, str):
                raise ValueError(member.removeprefix("decode: "))
            name = posixpath.normpath(member.name.encode("utf-8", "backslashreplace").decode())
            if _HIDDEN.search(name) or member.isdir():
                continue
            contents[name] = _read(file, member, name, size) if name.lower().endswith(".json") else None
    return contents


def _compression(head: bytes) -> str | None:
    return next((name for mark, name in _COMPRESSED if head.startswith(mark)), None)


def _members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo | str]:
    """The members of a tar of `size` bytes; last, a sentence where it is damaged or cut off."""
    at, names = 0, 0
    try:
        with tarfile.open(fileobj=_Headers(file, size), mode="r:") as tar:
            while (member := tar.next()) is not None:
                if member.size < 0 or member.offset_data < at:
                    raise _Damaged("a member of less than no bytes")
                at, names = member.offset_data, names + 1
                yield member
                tar.members.clear()  # type: ignore[attr-defined]  # else all of them stay in memory
                if member.offset_data + member.size > size:
                    raise _Damaged("it ends within one")
            at = tar.offset
        file.seek(at)
        if file.read(_END).strip(b"\0") or at + _END > size:  # tarfile takes a damaged header for the end
            yield f"decode: the shard is damaged or cut off after its first {names} files, at byte {at}"
    except (tarfile.TarError, *_HOSTILE) as error:
        yield f"decode: the shard is damaged or cut off after its first {names} files ({error})"


def _video(member: tarfile.TarInfo, name: str, shard: Row, largest: int) -> Row:
    end = member.offset_data + member.size
    error = None
    if not member.isreg() or member.issparse():
        error = "refused: it is no plain file in its shard but a link, a sparse file or a device"
    elif member.size > largest:
        error = f"refused: it has {member.size} bytes; a video in a shard may have {largest}"
    elif end > shard["size"]:
        error = f"decode: its shard is cut off {end - shard['size']} bytes before its end"
    within = posixpath.dirname(name).lstrip("/.")
    return {
        **shard,
        "uri": f"{shard['uri']}#{member.offset_data}+{member.size}:{name}",
        "relative": f"{shard['relative']}/{name}",
        "size": member.size,
        "error": error,
        "folder": within or posixpath.dirname(shard["relative"]),  # thousands of shards are no sources of their own
    }


def _read(file: BinaryIO, member: tarfile.TarInfo, name: str, size: int) -> _Words:
    """The bytes of a .txt or .json."""
    if not member.isreg() or member.size > _HEADERS or member.offset_data + member.size > size:
        return ClipError("refused", f"{name} is cut off, no plain file, or has more than {_HEADERS} bytes")
    file.seek(member.offset_data)
    return file.read(member.size)


def _matched(rows: list[Row], words: dict[str, _Words], shard: str) -> Part:
    """The videos of a tar with their words, and the names of the words that are no video's."""
    stems: dict[str, dict[str, str]] = {}  # extension and name of the words by what their name is without it
    for name in words:
        stem, end = posixpath.splitext(name)
        stems.setdefault(stem, {})[end.lower()] = name
    used = set[str]()
    written = spellings()
    values: list[Row] = []
    for row in rows:
        own: Row = {}
        for name in _words_of(posixpath.normpath(row["relative"].removeprefix(f"{shard}/")), stems):
            used.add(name)
            try:
                own |= _parsed(words[name], name)
                row["origin"] = f"{shard}/{name}"
            except ClipError as error:
                row["error"] = row["error"] or f"{error.code}: {shard}/{error.sentence}"
        values.append({written.setdefault(plain_name(name), name): value for name, value in own.items()})
    names = list(dict.fromkeys(["caption", *(name for own in values for name in own)]))
    columns = {name: column_of([own.get(name) for own in values]) for name in names}
    return Part(rows, columns, [f"{shard}/{name}" for name in words if name not in used])


def _words_of(video: str, stems: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The names of a video's .json and .txt: that with the most of the video's own name, up to a dot."""
    folder, base = posixpath.split(posixpath.splitext(video)[0])
    own: dict[str, str] = {}
    while base:
        own = {**stems.get(posixpath.join(folder, base), {}), **own}
        base = base.rpartition(".")[0]
    return [own[end] for end in _WORDS if end in own]


def _parsed(data: _Words, name: str) -> Row:
    """What the .txt or .json beside a video says. Raises ClipError: the video's, for it has no caption now."""
    if isinstance(data, ClipError):
        raise data
    try:
        text = decode_text(data)
        if not name.lower().endswith(".json"):
            return {"caption": text.strip()}
        values = json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise ClipError("decode", f"{name} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ClipError("decode", f"{name} is no JSON object with the columns of one video")
    values = _with_captions(_by_column(values, name))
    row: Row = {}
    for key, value in values.items():
        try:
            check_text(key)
            if key in ("caption", "captions"):
                check_text(value)
                row[key] = value
            else:
                row[key] = plain_value(value)
        except (ValueError, RecursionError) as error:
            shown = key.encode("utf-8", "backslashreplace").decode()
            raise ClipError("decode", f"{name}: its `{shown}` cannot be used: {error}") from error
    return row


def _by_column(values: Row, name: str) -> Row:
    """A member's values, those of texts by the name that their column has. Raises ClipError for two of one column."""
    written = spellings()
    columns: Row = {}
    for key, value in values.items():
        column = written.setdefault(plain_name(key), key)
        if column in columns:
            shown = key.encode("utf-8", "backslashreplace").decode()
            raise ClipError("decode", f"{name} has the key `{shown}` twice, in another case; rename or remove one")
        columns[column] = value
    return columns


def _with_captions(values: Row) -> Row:
    """Values with the captions of a member, several or one, under the name of their column."""
    column = caption_column(values)
    if column is None:
        return values
    caption = values.pop(column)
    if not isinstance(caption, list):
        return {**values, "caption": caption}
    more = values.get("captions")
    return {**values, "captions": [*caption, *(more if isinstance(more, list) else [more])]}


def fetch(fs: fsspec.AbstractFileSystem, bare: str, first: int, size: int, file: BinaryIO) -> None:
    """Copy `size` bytes from byte `first` on into a local file, by range."""
    for at in range(first, first + size, _STRETCH):
        end = min(at + _STRETCH, first + size)
        data = fs.cat_file(bare, start=at, end=end)
        if len(data) != end - at:
            raise OSError(f"the shard ends {end - at - len(data)} bytes early")
        file.write(data)
