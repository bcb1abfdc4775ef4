"""The videos of a folder or glob: files, and what lies inside the shards among them."""

from __future__ import annotations

import dataclasses
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.inputs import extensions, refusals
from pipeline.inputs.folders import file_tree, sidecars
from pipeline.inputs.folders.file_tree import Tree
from pipeline.inputs.folders.files import AT_ONCE, Place, Row, is_broken, is_file, relative, some
from pipeline.inputs.layouts import curator_tars, recognition
from pipeline.inputs.manifests import reader
from pipeline.inputs.shards import image_folders, members
from pipeline.inputs.video_columns import Part, chosen, joined, of_table
from pipeline.inputs.video_set import VideoSet

log = logging.getLogger(__name__)

METADATA = tuple(name.lower() for name in recognition.METADATA)

Listing = tuple[list[Row], pa.Table]  # files, and what is known of each, row by row
ReadManifest = Callable[[str], Listing | None]  # None: the file names no videos


def listed_below(fs: fsspec.AbstractFileSystem, bare: str, asked: VideoSet, read: ReadManifest) -> Listing:
    """The videos of a folder or glob, or a single one: those that metadata files in its folders list (`read` gives
    them), the other files with the captions in the files beside them, ordered by path, and those in shards. What is
    passed over is a warning; a known list of videos that is passed over is an error. Raises InputError."""
    place, tree = _opened(fs, bare, asked)
    entries = _visible(place, tree)
    _check_known(place, entries)
    kinds = _sorted(place, entries)
    outside = Part([place.row(path, {"size": 0}) for path in sorted(tree.outside)], {})
    listed = _without_repeats(place, _listed(place, kinds, read))
    named = {row["uri"] for part in listed for row in part.rows}
    loose = {path: info for path, info in kinds.videos.items() if place.listed_uri(path) not in named}
    _say_unlisted(place, kinds.metadata, loose)
    captions = sidecars.of_videos(place, list(loose), kinds.others)
    maps = sidecars.captions_by_folder(place, kinds.others)
    files = sidecars.with_captions(place, loose, captions, maps)
    packed = [sidecars.apply_maps(place, part, maps) for part in _shards(place, kinds.shards)]
    pictures = _picture_folders(place, kinds, asked.fps)
    rows, table = joined([outside, *listed, files, *packed, pictures])
    _check_any(place, rows, len(entries))
    _say_left_out(place, kinds)
    _say_unmatched(place, [name for part in packed for name in part.unmatched])
    return rows, table


# --- what there is ----------------------------------------------------------------------------------------------------


def _opened(fs: fsspec.AbstractFileSystem, bare: str, asked: VideoSet) -> tuple[Place, Tree]:
    how = (asked.named, asked.base, asked.sidecars)
    try:
        if fs.isfile(bare):
            return Place(fs, *how, posixpath.dirname(bare), False), Tree({bare: fs.info(bare)})
        if fs.exists(bare):
            return Place(fs, *how, bare, True), file_tree.below(fs, bare, asked.base)
        root, tree = file_tree.matching(fs, bare, asked.base)
        return Place(fs, *how, root, False), tree
    except ValueError as error:
        raise InputError(f"{asked.named}: its files cannot be listed: {error}.") from error


def _visible(place: Place, tree: Tree) -> dict[str, Any]:
    """The files that are not hidden, ordered by path; of a store, without the empty objects that stand for folders."""
    if tree.closed:
        names = some([place.below(path) for path in tree.closed])
        log.warning("%s: left out are folders that may not be read: %d (%s).", place.named, len(tree.closed), names)
    return {
        path: info
        for path, info in sorted(tree.entries.items())
        if (is_file(info) or is_broken(info))
        and not path.endswith("/")
        and not any(n.startswith(".") for n in place.below(path).split("/"))
    }


@dataclasses.dataclass
class _Kinds:
    """The files of a place by what they are."""

    metadata: list[str]  # manifests, the deepest first
    videos: dict[str, Any]
    shards: dict[str, Any]
    others: dict[str, Any]


def _sorted(place: Place, entries: Mapping[str, Any]) -> _Kinds:
    """The files by kind. A folder has one metadata file; where the root has one, what it lists is all that counts."""
    kinds = _Kinds([], {}, {}, {})
    folders: dict[str, list[str]] = {}
    for path, info in entries.items():
        name = posixpath.basename(path).lower()
        if name.endswith(extensions.VIDEOS):
            kinds.videos[path] = info
        elif place.whole and name in METADATA and not is_broken(info):
            folders.setdefault(posixpath.dirname(path), []).append(path)
        elif name.endswith((*members.EXTENSIONS, *members.COMPRESSED)):
            kinds.shards[path] = info
        else:
            kinds.others[path] = info
    for paths in folders.values():
        first, *rest = sorted(paths, key=lambda path: METADATA.index(posixpath.basename(path).lower()))
        kinds.others |= {path: entries[path] for path in rest}
        if first.lower().endswith(".parquet") and members.holds_videos(place.fs, first):
            kinds.shards[first] = entries[first]
        else:
            kinds.metadata.append(first)
    kinds.metadata.sort(key=lambda path: (-path.count("/"), path))
    if kinds.metadata and posixpath.dirname(kinds.metadata[-1]) == place.root:
        *deeper, own = kinds.metadata
        say_other_metadata(place.named, posixpath.basename(own), [place.below(path) for path in deeper])
        return _Kinds([own], {}, {}, {})
    return kinds


def say_other_metadata(named: str, own: str, others: list[str]) -> None:
    if others:
        log.warning(
            "%s: its %s lists the videos; metadata files in folders below it are not read: %d (%s). Take %s away, and "
            "they are.",
            named,
            own,
            len(others),
            some(others),
            own,
        )


def metadata_below(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """The metadata files in the folders below one, relative to it; a store is not asked, as it may not be listed."""
    if "file" not in fs.protocol:
        return []
    paths = []
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if path != folder:
            paths += [relative(posixpath.join(path, name), folder) for name in names if name.lower() in METADATA]
    return sorted(paths)


# --- metadata in subfolders -------------------------------------------------------------------------------------------


def _listed(place: Place, kinds: _Kinds, read: ReadManifest) -> list[Part]:
    """The videos that metadata files list. Those that list none are taken out of `kinds`."""
    parts = []
    for path in list(kinds.metadata):
        if refusals.of_place(place.uri(path), place.base):
            parts.append(Part([place.row(path, {"size": 0})], {}))
            continue
        listed = read(path)
        if listed is None:
            log.warning("%s: %s names no videos; it is left out.", place.named, place.below(path))
            kinds.metadata.remove(path)
        else:
            parts.append(_below_root(place, path, *listed))
    return parts


def _below_root(place: Place, path: str, rows: list[Row], table: pa.Table) -> Part:
    """What a metadata file lists, with paths relative to the root instead of its own folder."""
    folder = posixpath.dirname(place.below(path))
    head = place.listed_uri(place.root).rstrip("/") + "/"
    for row in rows:
        row["origin"] = f"{place.below(path)} ({row['origin']})"
        if row["uri"].startswith(head):
            row["relative"] = row["uri"].removeprefix(head)
        elif row["relative"] != row["uri"] and not row["relative"].startswith("/"):
            row["relative"] = posixpath.normpath(posixpath.join(folder, row["relative"]))
    try:
        part = of_table(rows, table)
        is_untyped = path.lower().endswith(reader.UNTYPED)
        return dataclasses.replace(part, untyped=frozenset(part.columns)) if is_untyped else part
    except ValueError as error:
        raise InputError(f"{place.named}: {place.below(path)} cannot be used: {error}.") from error


def _without_repeats(place: Place, listed: list[Part]) -> list[Part]:
    """Of a video that the metadata of several folders lists, the row of the deepest folder, which comes first."""
    parts, named, repeats = [], set[str](), 0
    for part in listed:
        fresh = [at for at, row in enumerate(part.rows) if row["uri"] not in named]
        repeats += len(part.rows) - len(fresh)
        parts.append(chosen(part, fresh) if len(fresh) < len(part.rows) else part)
        named |= {row["uri"] for row in part.rows}
    if repeats:
        log.warning(
            "%s: rows of metadata that the metadata of a deeper folder has too: %d. They are left out.",
            place.named,
            repeats,
        )
    return parts


def _say_unlisted(place: Place, metadata: list[str], loose: Mapping[str, Any]) -> None:
    folders = {posixpath.dirname(path) for path in metadata}
    names = []
    for path in loose:
        folder = posixpath.dirname(path)
        while len(folder) > len(place.root) and folder not in folders:
            folder = posixpath.dirname(folder)
        if folder in folders:
            names.append(place.below(path))
    if names:
        log.warning(
            "%s: videos that the metadata of their folder does not list: %d (%s). They are used all the same, with the "
            "captions in .txt files beside them; list them, or take them away.",
            place.named,
            len(names),
            some(names),
        )


def _check_known(place: Place, entries: Mapping[str, Any]) -> None:
    """Raise InputError where a folder below has a file that says what its videos are and that nothing here reads."""
    folders: dict[str, set[str]] = {}
    for path in entries if place.whole else ():
        folders.setdefault(posixpath.dirname(path), set()).add(posixpath.basename(path))
    for folder, names in folders.items():
        unread = recognition.unread(names)
        if unread is not None and folder != place.root:
            shown = place.below(posixpath.join(folder, unread))
            raise InputError(
                f"{place.named}: {shown} says what the videos of its folder are, and is read where it is named alone: "
                f"name {posixpath.dirname(shown)}, or that file, or take the file away."
            )


# --- folders of pictures ----------------------------------------------------------------------------------------------


def _picture_folders(place: Place, kinds: _Kinds, fps: float) -> Part:
    """Folders of pictures as clips, where a place has nothing else: beside videos, pictures are previews of them. The
    caption of one lies beside it, in FOLDER.txt."""
    empty = Part([], {"caption": pa.chunked_array([pa.array([], pa.string())])})
    if not place.whole or kinds.videos or kinds.shards or kinds.metadata:
        return empty
    folders: dict[str, list[Any]] = {}
    for path, info in kinds.others.items():
        if image_folders.is_picture(path) and is_file(info):
            folders.setdefault(posixpath.dirname(path), []).append(info)
    clips = {folder: entries for folder, entries in folders.items() if len(entries) >= image_folders.FEWEST}
    if not clips:
        return empty
    log.warning("%s: folders of pictures: %d. Each is a clip of %g frames a second.", place.named, len(clips), fps)
    captions = {
        folder: (folder + end, kinds.others[folder + end]["size"])
        for folder in clips
        for end in place.sidecars
        if folder + end in kinds.others
    }
    texts, errors = sidecars.read_texts(place, dict(captions.values()))
    rows = []
    for folder, entries in clips.items():
        below = "." if folder == place.root else place.below(folder)
        row = image_folders.row_of(place.fs, folder, below, entries, fps, place.base)
        rows.append({**row, "error": row["error"] or errors.get(captions.get(folder, ("",))[0])})
    own = [texts.get(captions.get(folder, ("",))[0], "") for folder in clips]
    return Part(rows, {"caption": pa.chunked_array([pa.array(own, pa.string())])})


# --- shards -----------------------------------------------------------------------------------------------------------


def _shards(place: Place, packed: Mapping[str, Any]) -> list[Part]:
    """What each shard holds; nothing, and a warning, for a Parquet file without videos. Tars of a curator's metadata
    and of embeddings of captions are no shards of videos."""
    parts = []
    pairs = curator_tars.pairs(place.fs, packed, place.named, place.base)
    packed = {path: info for path, info in packed.items() if path not in pairs.others}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for path, part in zip(packed, threads.map(partial(_shard, place, pairs), packed.items()), strict=True):
            if part is None:
                log.warning("%s: %s has no column with the bytes of videos; it is left out.", place.named, path)
            else:
                parts.append(part)
    return parts


def _shard(place: Place, pairs: curator_tars.Pairs, entry: tuple[str, Mapping[str, Any]]) -> Part | None:
    path, info = entry
    file = place.row(path, info)
    if file["error"] is not None:
        return Part([file], {})
    try:
        part = members.listed(place.fs, path, file)
        if part is None or path not in pairs.metas:
            return part
        return curator_tars.with_metadata(place.fs, part, *pairs.metas[path], place.named)
    except InputError:
        raise
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise InputError(
            f"{place.named}: what {file['relative']} says of its videos is no table: {error}. Give every column one "
            "plain type, or leave it out."
        ) from error


# --- messages ---------------------------------------------------------------------------------------------------------


def _check_any(place: Place, rows: list[Row], count: int) -> None:
    """Raise InputError where there is no video, or none that could ever be read."""
    if not rows:
        raise InputError(
            f"{place.named}: there are no videos ({', '.join(e[1:] for e in extensions.VIDEOS)}) and no shards of them "
            f"({', '.join(e[1:] for e in members.EXTENSIONS)}) among its {count} files. Name the folder that holds "
            "them, or list them in a manifest."
        )
    packed = [row for row in rows if row["relative"].lower().endswith(members.COMPRESSED)]
    if len(packed) == len(rows):
        names = some([row["relative"] for row in packed])
        raise InputError(f"{place.named}: all videos lie in compressed tars ({names}): {members.UNPACK}.")


def _say_left_out(place: Place, kinds: _Kinds) -> None:
    """One line on the files that are neither videos nor anything that belongs to them."""
    if not place.whole:
        return
    stems = {posixpath.splitext(path)[0] for path in kinds.videos}
    counts: Counter[str] = Counter()
    broken = [place.below(path) for path, info in kinds.others.items() if is_broken(info)]
    if broken:
        log.warning("%s: left out are links to what is not there: %d (%s).", place.named, len(broken), some(broken))
    for path, info in kinds.others.items():
        stem, end = posixpath.splitext(path)
        end = end.lower()
        if is_broken(info):
            continue
        if posixpath.basename(path).lower() == recognition.CAPTIONS:
            continue
        if end not in place.sidecars:
            counts[end or "without an extension"] += 1
        elif stem not in stems:
            counts[f"{end} of no video"] += 1
    if counts:
        ends = [f"{count} {end}" for end, count in counts.most_common(20)]
        more = f" and {len(counts) - 20} other kinds" if len(counts) > 20 else ""
        log.warning("%s: left out: %s%s.", place.named, ", ".join(ends), more)


def _say_unmatched(place: Place, names: list[str]) -> None:
    if names:
        log.warning(
            "%s: members of tar shards that are the words of no video: %d (%s). Give them the names of their videos.",
            place.named,
            len(names),
            some(names),
        )
