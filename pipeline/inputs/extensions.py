"""By which ends of their names the videos of a folder or shard are known."""

from __future__ import annotations

_ENDS = "mp4 mkv webm avi mov gif m4v mpg mpeg vob ts m2ts mts wmv asf flv f4v 3gp 3g2 ogv"
VIDEOS = tuple(f".{end}" for end in _ENDS.split())
