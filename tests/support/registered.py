"""The folders of a run that the registry of tables does not know."""

from __future__ import annotations

from pathlib import Path

from pipeline.tables import registry
from pipeline.tables.registry import Table


def unregistered(root: Path | str) -> list[str]:
    """Folders below a run's root, relative to it, that hold a table which is none of the registry's, or files that no
    entry of the registry is for. One of them escapes a purge."""
    folders = []
    for folder in sorted(path for path in Path(root).rglob("*") if path.is_dir()):
        name, content = str(folder.relative_to(root)), registry.content(str(folder.relative_to(root)))
        if any(folder.glob("part-*.parquet")) and not isinstance(content, Table):
            folders.append(f"{name} (a table)")
        elif content is None and any(path.is_file() for path in folder.iterdir()):
            folders.append(name)
    return folders
