"""The section on clips that move unlike their queries: what it counts, what it shows, and where it is left out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import config, tables
from pipeline.pages import lawfulness, report
from pipeline.storage import stores
from pipeline.tables import schemas
from tests.pages import test_report

Row = dict[str, Any]
HEADING = "Moves unlike its queries"


def row(clip_id: str, distance: float, quantile: float | None, law: str, **more: Any) -> Row:
    named = {"group": "bounce", "named_by": "caption", "flaw": None, "flaw_measure": None}
    return {"clip_id": clip_id, "distance": distance, "quantile": quantile, "law": law, **named, **more}


def write(run: config.Run, rows: list[Row]) -> None:
    for part in (rows[::2], rows[1::2]):
        tables.append(
            stores.join(run.root, "lawfulness"), pa.Table.from_pylist(part, schema=schemas.LAWFULNESS), {"a": 1}
        )


def ids(count: int) -> list[str]:
    return [clip_id for clip_id in test_report.SCENES if clip_id.startswith("clip")][:count]


def broken(names: list[str]) -> list[Row]:
    """Seven clips that break a law, one with a flaw, one of no name that is as far, one that is lawful."""
    laws = ["jerk", "turning", "jerk", "jerk", "amount", "jerk", "turning"]
    rows = [row(name, 2.0 + n, 0.01, law) for n, (name, law) in enumerate(zip(names, laws, strict=False))]
    rows.append(row(names[8], 0.5, 0.6, "timing", flaw="frozen", flaw_measure=0.4))
    rows.append(row(names[7], 99.0, 0.01, "spreading", named_by="flow"))
    rows.append(row(names[9], 0.4, 0.9, "timing"))
    return rows


def test_laws_and_flaws_are_counted_and_the_farthest_are_shown(tmp_path: Path) -> None:
    run, names = test_report.build(str(tmp_path)), ids(10)
    write(run, broken(names))
    summary = report.write(run, test_report.frames_of, test_report.video_of)
    assert summary["lawfulness"] == {
        "measured": 10,
        "named": 9,
        "laws": {"jerk": 4, "turning": 2, "amount": 1},
        "flaws": {"frozen": 1},
    }
    page = (tmp_path / "report" / "index.html").read_text()
    section = page[page.index('<section id="lawfulness"') : page.index('<section id="controls"')]
    assert HEADING in section
    assert '<a href="#lawfulness">' in page
    shown = re.findall(r'/ (clip-[^"]+)">', section)
    assert shown == [*names[6:1:-1], names[8]], "five of those that break a law, the farthest first, and the flawed one"
    assert section.count('<div class="clip') == 6, "each has its picture"
    assert "quantile 0.010" in section
    assert "frozen</b>" in section


def test_without_the_table_there_is_no_section_and_with_lawful_clips_alone_no_picture(tmp_path: Path) -> None:
    run, page = test_report.build(str(tmp_path)), tmp_path / "report" / "index.html"
    assert report.write(run, test_report.frames_of)["lawfulness"] is None
    assert HEADING not in page.read_text()
    assert "#lawfulness" not in page.read_text()
    write(run, [row(name, 0.3, None if name.endswith("1") else 0.8, "timing") for name in ids(4)])
    assert report.write(run, test_report.frames_of)["lawfulness"] == {
        "measured": 4,
        "named": 4,
        "laws": {},
        "flaws": {},
    }
    section = page.read_text().split('<section id="lawfulness"')[1].split("</section>")[0]
    assert "<figure>" not in section


def test_the_page_shows_no_caption_where_it_must_not(tmp_path: Path) -> None:
    run, names = test_report.build(str(tmp_path)), ids(10)
    run = run.model_copy(update={"report": run.report.model_copy(update={"captions": False, "pictures": False})})
    write(run, broken(names))
    report.write(run, test_report.frames_of)
    page = (tmp_path / "report" / "index.html").read_text()
    section = page.split('<section id="lawfulness"')[1].split("</section>")[0]
    assert names[6] in section
    assert test_report.SCENES[names[6]].caption not in section
    assert "no picture" in section


def test_rows_are_read_in_blocks_and_the_worst_of_all_blocks_stay(tmp_path: Path) -> None:
    run = config.load("demo", {"root": str(tmp_path)})
    assert lawfulness.measured(run) is None
    write(run, [row(f"c{n:03d}", float(n), 0.01, "jerk") for n in range(50)])
    result = lawfulness.measured(run)
    assert result is not None
    assert [r["clip_id"] for r in result.lawless] == [f"c{n:03d}" for n in range(49, 44, -1)]
    assert result.flawed == []
