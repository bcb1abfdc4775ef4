"""WebDataset's tar files: members of one name but for the extension, one after the other, are a video and its words."""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa

from pipeline.schemas import caption_column
from pipeline.video import EXTENSIONS, ClipError

_HEADERS = 1 << 20  # bytes read at once while listing, at most: headers and captions are small, whatever they claim
_AHEAD = 1 << 16  # bytes that one request of a store brings while listing: a header, the words, the next header
_STRETCH = 64 << 20  # bytes that are in memory while a member is fetched
_END = 512  # bytes of a block; one of zeros ends an archive

_HOSTILE = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError)  # from its headers

Row = dict[str, Any]


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


def listed(fs: fsspec.AbstractFileSystem, bare: str, shard: Row, largest: int) -> tuple[list[Row], pa.Table]:
    """The rows of the videos in a tar and what their .json and .txt say, each key of the .json a column. A member that
    the file ends in, or one larger than `largest`, is a row with an error; so is the rest after a damaged header."""
    rows: dict[str, Row] = {}  # of two members of one name the later one counts, as when unpacking
    words: dict[str, Row] = {}
    with fs.open(bare, "rb", block_size=_AHEAD, cache_type="readahead") as file:
        key: tuple[str, str] | None = None
        videos, known, fault = list[Row](), Row(), None
        for member in _members(file, shard["size"]):
            if isinstance(member, str):
                videos.append({**shard, "relative": f"{shard['relative']}/", "error": member, "size": 0})
                break
            name = member.name.encode("utf-8", "backslashreplace").decode()  # not every byte of a name is text
            stem, _, end = posixpath.basename(name).partition(".")
            if (posixpath.dirname(name), stem) != key:
                _close(videos, known, fault, rows, words)
                key, videos, known, fault = (posixpath.dirname(name), stem), [], {}, None
            if name.lower().endswith(EXTENSIONS):
                videos.append(_video(member, name, shard, largest))
            elif end.lower() in ("txt", "json"):
                try:
                    known |= _words(file, member, end.lower(), shard["size"])
                except ClipError as error:
                    fault = str(error)
        _close(videos, known, fault, rows, words)
    return list(rows.values()), _columns([words[relative] for relative in rows])


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


def _words(file: BinaryIO, member: tarfile.TarInfo, kind: str, size: int) -> Row:
    """What the .txt or .json beside a video says. Raises ClipError: the video's, for it has no caption now."""
    if not member.isreg() or member.size > _HEADERS or member.offset_data + member.size > size:
        raise ClipError("refused", f"its .{kind} is cut off, no plain file, or has more than {_HEADERS} bytes")
    file.seek(member.offset_data)
    text = file.read(member.size).decode("utf-8", "replace")
    if kind == "txt":
        return {"caption": text.strip()}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClipError("decode", f"its .json cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise ClipError("decode", "its .json is no object")
    named = caption_column(found)
    if named:
        words = found.pop(named)
        found["captions" if isinstance(words, list) else "caption"] = words
    # An object within an object passes as its text: objects of many shards have no schema in common.
    return {k: json.dumps(v) if isinstance(v, dict) else v for k, v in found.items()}


def _close(videos: list[Row], known: Row, fault: str | None, rows: dict[str, Row], words: dict[str, Row]) -> None:
    """Put away the videos of one key with what is known of them."""
    for video in videos:
        rows[video["relative"]] = {**video, "error": video["error"] or fault}
        words[video["relative"]] = known


def _columns(words: list[Row]) -> pa.Table:
    names = list(dict.fromkeys(["caption", *(name for row in words for name in row)]))
    return pa.table({name: pa.array([row.get(name) for row in words]) for name in names})


def fetch(fs: fsspec.AbstractFileSystem, bare: str, first: int, size: int, file: BinaryIO) -> None:
    """Copy `size` bytes from byte `first` on into a local file, by range."""
    for at in range(first, first + size, _STRETCH):
        end = min(at + _STRETCH, first + size)
        data = fs.cat_file(bare, start=at, end=end)
        if len(data) != end - at:
            raise OSError(f"the shard ends {end - at - len(data)} bytes early")
        file.write(data)
