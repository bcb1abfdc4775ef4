"""Which places a listed video may not have: foreign protocols, archives, playlists, what is outside the base."""

from __future__ import annotations

import os
import re

from pipeline.config import credentials
from pipeline.storage.stores import place

# Where videos are read from, as fsspec names it. No http: whoever writes a manifest could make the cluster ask anything
# of any host. No archives or chained addresses (zip://a.mp4::s3://...), which name files inside of files.
STORES = ("file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".iso", ".parquet")
PLAYLISTS = (".m3u", ".m3u8", ".mpd", ".ffconcat", ".concat", ".pls", ".asx", ".xspf", ".sdp", ".ism", ".smil")
REFERENCE = re.compile(
    r"(?P<shard>.+\.(?i:tar|parquet|lance))#(?P<first>\d+)(?:\+(?P<size>\d+))?:(?P<name>.*)", re.DOTALL
)
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
# Of ffmpeg: concat:a|b, subfile,,start,0,end,9,,:a, data:. Another word before a colon is part of a name: take:1.mp4.
_PROTOCOL = re.compile(
    r"(async|cache|concatf?|crypto|data|fd|file|ftp|gophers?|hls|https?|httpproxy|icecast|ipfs|ipns|md5|mms[ht]|pipe|"
    r"prompeg|rist|rtmp[a-z]*|rtp|rtsp|sctp|sdp|sftp|smb|srtp?|subfile|tcp|tee|tls|udp|udplite|unix)(\+[a-z]+)*"
    r"(,[^/]*)?:",
    re.IGNORECASE,
)
_WINDOWS = re.compile(r"[a-zA-Z]:[\\/]|\\\\[^\\]+\\")  # C:\clips\a.mp4, C:/clips/a.mp4, \\server\share\a.mp4


def of_text(path: str) -> str | None:
    """Why a video's path, as it is written in a manifest, is refused; None where it is not."""
    end = path.lower().split("?")[0]
    if end.endswith(ARCHIVES):
        return of_address(path) or "it is an archive; list its videos, or name tar or Parquet shards in data.videos"
    if end.endswith(PLAYLISTS):
        return of_address(path) or "it is a playlist that names other files; list the videos themselves"
    return of_address(path)


def of_address(path: str) -> str | None:
    """Why an address is refused, whatever lies there."""
    kind = credentials.kind_of(path)
    if kind:
        return f"its address holds {kind}; list it plainly and give credentials by the environment or a role"
    if _WINDOWS.match(path):
        return (
            "it is a Windows path, which only Windows reads; write it relative to the manifest, with / between folders"
        )
    scheme = _SCHEME.match(path)
    if scheme and scheme[1].lower() not in STORES:
        return f"videos are not read by {scheme[1].lower()}://; copy them to a folder or bucket and list them there"
    if "::" in path or "://" in path[scheme.end() if scheme else 0 :]:
        return "an address within another one is no plain path"
    if any(ord(c) < 32 for c in path):
        return "its path has a control character"
    if REFERENCE.fullmatch(path):
        return "it names a part of a shard; name the shard itself in data.videos"
    return None


def of_missing(path: str) -> str | None:
    """Why a path that leads to no file is no mere mistake: it asks a decoder for another protocol, or is Windows'."""
    if _SCHEME.match(path):
        return None
    protocol = _PROTOCOL.match(path)
    if protocol:
        return f"{protocol[0]} is a protocol of decoders and no path; list the video itself"
    if "\\" in path:
        return "there is no such file, and \\ separates folders on Windows alone; write / between them"
    return None


def of_place(uri: str, base: str | None) -> str | None:
    """Why a place, links followed, is outside `base` (data.base; null: anything goes)."""
    if base is None:
        return None
    outside = "it lies outside data.base"
    (fs, bare), (base_fs, below) = place(uri), place(os.path.expanduser(base))
    if fs.protocol != base_fs.protocol:
        return outside
    if "file" in fs.protocol:
        bare, below = os.path.realpath(bare), os.path.realpath(below)
    elif ".." in bare.split("/"):
        return outside
    return None if bare.startswith(below.rstrip("/") + "/") else outside


def plain(uri: str) -> str:
    """A refused address without what may be a secret in it: user, password and query."""
    uri = credentials.scrubbed(uri)  # first: a password may hold slashes
    scheme = _SCHEME.match(uri)
    if not scheme:
        return uri
    host, slash, rest = uri[scheme.end() :].partition("/")
    return f"{scheme[0]}{host.rpartition('@')[2]}{slash}{rest.split('?')[0]}"
