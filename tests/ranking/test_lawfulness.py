"""Which clips move unlike the real clips of their motion, and which law they break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import config, tables
from pipeline.config import Run
from pipeline.errors import ConfigError, FingerprintError
from pipeline.motion import colours, judge
from pipeline.motion.flaws import FLAWS
from pipeline.ranking import lawfulness
from pipeline.stages.ranking import measure_lawfulness
from pipeline.storage import stores
from pipeline.synthetic import world
from pipeline.tables import schemas

GROUPS = ["bounce", "free_fall", "roll", "slide", "spin", "swing"]
SCHEMA = schemas.movement_schema(judge.NUMBERS, len(FLAWS), colours.NUMBERS)


@pytest.mark.parametrize(
    ("caption", "group"),
    [
        ("a red ball bouncing on a blue background", "bounce"),
        ("A Box Falling Freely", "free_fall"),
        ("the dog rolls over", "roll"),
        ("a spinach leaf", None),
        ("a ball rolling and then sliding", None),  # two of them: nobody knows which
        ("trolls", None),
        ("", None),
    ],
)
def test_a_caption_names_a_motion_in_any_form_of_its_words(caption: str, group: str | None) -> None:
    assert lawfulness.named_group(caption, GROUPS) == group


def test_quantiles_are_those_of_a_conformal_test() -> None:
    among = np.array([1.0, 2.0, 3.0, 4.0])
    assert lawfulness.quantiles(np.array([0.0, 2.0, 2.5, 9.0]), among).tolist() == [1.0, 0.8, 0.6, 0.2]


def described(scene: world.Scene) -> list[float]:
    return judge.description(world.flow(scene, 32, 32).transpose(0, 3, 1, 2)).tolist()


def table(scenes: dict[str, world.Scene]) -> pa.Table:
    blank = {"version": "v", "flaws": [0.0] * len(FLAWS), "colours": [1 / colours.NUMBERS] * colours.NUMBERS}
    rows = [{"clip_id": name, "description": described(scene), **blank} for name, scene in scenes.items()]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def segments(scenes: dict[str, world.Scene], schema: pa.Schema, **columns: Any) -> pa.Table:
    rows = [
        {"clip_id": name, "uri": name, "version": "v", "caption": scene.caption, "group": scene.motion, **columns}
        for name, scene in scenes.items()
    ]
    return pa.Table.from_pylist(rows, schema=schema)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Five queries of each motion, and of seven motions twelve real clips and twelve cartoons."""
    root = str(tmp_path_factory.mktemp("lawful"))
    made = config.load("demo", {"root": root})
    queries = {scene.name: scene for scene in world.queries(1, 5)}
    kinds = [(kind, motion, n) for kind in ("real", "cartoon") for motion in world.CARTOONS for n in range(12)]
    clips = {f"{kind} {motion} {n}": world.scene(2, f"{n}", kind, motion) for kind, motion, n in kinds}
    tables.append(stores.join(root, "queries"), segments(queries, schemas.QUERIES), {})
    tables.append(stores.join(root, "movement", "queries"), table(queries), {})
    tables.append(stores.join(root, "clips"), segments(clips, schemas.CLIPS), {})
    measured = table(clips)
    tables.append(stores.join(root, "movement", "clips"), measured, {})
    tables.append(stores.join(root, "movement", "clips"), measured.slice(0, 3), {})  # as a killed job leaves them
    return made


def test_cartoons_move_unlike_the_queries_and_real_clips_do_not(run: Run) -> None:
    rows = pa.concat_tables(lawfulness.lawfulness(run)).to_pylist()
    assert len(rows) == len({row["clip_id"] for row in rows}) == 2 * 12 * len(world.CARTOONS)
    assert {row["named_by"] for row in rows} == {"caption"}
    assert all(row["group"] == row["clip_id"].split()[1] for row in rows)
    real, cartoon = ([r for r in rows if r["clip_id"].startswith(kind)] for kind in ("real", "cartoon"))
    auc = np.mean([[c["distance"] > r["distance"] for r in real] for c in cartoon])
    assert auc > 0.7, f"cartoons are told from real clips with {auc:.2f}"
    false, true = (np.mean([r["quantile"] <= 0.05 for r in side]) for side in (real, cartoon))
    assert false < 0.12, f"{false:.0%} of the real clips are called unlawful"
    assert true > 2 * false, "no more cartoons than real clips are called unlawful"


def test_what_is_unlawful_is_written_and_says_why(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    reasons = measure_lawfulness(run, {})
    written = tables.read(stores.join(run.root, "lawfulness"))
    assert written is not None
    assert written.schema.equals(schemas.LAWFULNESS)
    rows = {row["clip_id"]: row for row in written.to_pylist()}
    unlawful = [rows[clip_id] for clip_id in reasons.column("clip_id").to_pylist()]
    assert unlawful
    assert all(row["quantile"] <= run.ranking.unlawful for row in unlawful)
    distances = [row["distance"] for row in unlawful]
    assert distances == sorted(distances, reverse=True), "the least lawful come first"
    assert all(row["flaw"] is None and row["flaw_measure"] is None for row in rows.values())
    law = unlawful[0]["law"]
    assert reasons.column("reason")[0].as_py().startswith(f"moves unlike the real clips of {unlawful[0]['group']!r}, ")
    assert f"most by its {law}" in reasons.column("reason")[0].as_py()
    assert f"{len(unlawful)} of {len(rows)} clips whose motion is named" in capsys.readouterr().out


def test_a_clip_whose_motion_nobody_names_is_never_called_unlawful(run: Run, tmp_path: Path) -> None:
    nameless = run.model_copy(update={"root": str(tmp_path)})
    for name in ("queries", "movement/queries", "movement/clips"):
        rows = tables.read(stores.join(run.root, name))
        assert rows is not None
        tables.append(stores.join(str(tmp_path), name), rows, {})
    clips = tables.read(stores.join(run.root, "clips"))
    assert clips is not None
    column = clips.schema.get_field_index("caption")
    blank = clips.set_column(column, "caption", pa.array([""] * clips.num_rows, pa.string()))
    tables.append(stores.join(str(tmp_path), "clips"), blank, {})
    rows = pa.concat_tables(lawfulness.lawfulness(nameless))
    assert set(rows.column("named_by").to_pylist()) == {"flow"}
    assert not lawfulness.unlawful(rows, 1.0).num_rows
    ranking = nameless.ranking.model_copy(update={"group_column": "kind"})
    with pytest.raises(ConfigError, match=r"ranking\.group_column='kind': the manifest"):
        list(lawfulness.lawfulness(nameless.model_copy(update={"ranking": ranking})))


def test_a_flaw_spoils_a_clip_whose_motion_nobody_names(run: Run, tmp_path: Path) -> None:
    flawed = run.model_copy(update={"root": str(tmp_path)})
    for name in ("queries", "movement/queries", "clips", "movement/clips"):
        rows = tables.read(stores.join(run.root, name))
        assert rows is not None
        rows = rows.slice(0, 5) if name.endswith("clips") else rows
        if name == "clips":
            column = rows.schema.get_field_index("caption")
            rows = rows.set_column(column, "caption", pa.array(["a thing"] * 5, pa.string()))
        if name == "movement/clips":
            measures = [[0.0, 0.5, 1.0], [0.0, 0.0, 1.0], [0.5, 0.5, 1.0], [0.1, 0.1, 3.0], [0.0, 0.0, 9.0]]
            column = rows.schema.get_field_index("flaws")
            rows = rows.set_column(
                column, rows.schema.field("flaws"), pa.array(measures, rows.schema.field("flaws").type)
            )
        tables.append(stores.join(str(tmp_path), name), rows, {})
    ids = tables.read(stores.join(str(tmp_path), "movement/clips")).column("clip_id").to_pylist()  # type: ignore[union-attr]
    why = {row["clip_id"]: row["reason"] for row in measure_lawfulness(flawed, {}).to_pylist()}
    assert why == {
        ids[0]: "50% of its frames are shown again, which no query does",
        ids[2]: "its picture stands still for 50% of the clip, which no query does",
        ids[4]: "it jumps: a change 9.0 times the usual one, which no query does",
    }


def test_a_movement_of_before_flaws_is_named(run: Run, tmp_path: Path) -> None:
    older = run.model_copy(update={"root": str(tmp_path)})
    for name in ("queries", "movement/queries", "clips", "movement/clips"):
        rows = tables.read(stores.join(run.root, name))
        assert rows is not None
        rows = rows.drop_columns(["flaws"]) if name == "movement/clips" else rows
        tables.append(stores.join(str(tmp_path), name), rows, {})
    with pytest.raises(FingerprintError, match="measured before clips had flaws"):
        measure_lawfulness(older, {})


def test_without_movement_nothing_is_known(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not measure_lawfulness(run.model_copy(update={"root": str(tmp_path)}), {}).num_rows
    assert "none can be held against them" in capsys.readouterr().out


def row(**changes: Any) -> dict[str, Any]:
    usual = {"clip_id": "c", "group": "spin", "distance": 1.25, "quantile": 0.3, "law": "turning"}
    return usual | {"named_by": "caption", "flaw": None, "flaw_measure": None} | changes


ROWS = [
    row(clip_id="lawful"),
    row(clip_id="unlike", quantile=0.05),
    row(clip_id="nameless", quantile=0.01, named_by="flow"),
    row(clip_id="alone", quantile=None),
    row(clip_id="flawed", quantile=0.01, flaw="frozen", flaw_measure=0.38),
    row(clip_id="flawed and nameless", named_by="flow", flaw="repeats", flaw_measure=0.5),
]


def test_a_flaw_counts_before_a_law_and_only_what_is_named_breaks_one() -> None:
    rows = pa.Table.from_pylist(ROWS, schema=schemas.LAWFULNESS)
    assert lawfulness.violations(rows, 0.05).to_pylist() == [None, "turning", None, None, "frozen", "repeats"]
    names = lawfulness.unlawful(rows, 0.05).column("clip_id").to_pylist()
    assert names == ["unlike", "flawed", "flawed and nameless"]
    assert lawfulness.violations(rows.slice(0, 0), 0.05).to_pylist() == []


def test_clips_are_counted_by_whether_their_flow_is_known() -> None:
    rows = pa.Table.from_pylist(ROWS, schema=schemas.LAWFULNESS)
    counts = lawfulness.count_unlawful(rows, pa.array(["lawful", "unlike", "flawed", "of no flow"]), 0.05)
    assert counts == (4, 3, 2)
    assert counts.share == pytest.approx(2 / 3)
    assert lawfulness.count_unlawful(rows, pa.array(["of no flow"]), 0.05).share is None


@pytest.mark.parametrize(
    ("clip_id", "said"),
    [
        ("lawful", "it moves as the queries of 'spin' do: distance 1.25, quantile 0.300 (unlawful up to 0.05)"),
        ("unlike", "it moves unlike the queries of 'spin': distance 1.25, quantile 0.050 (unlawful up to 0.05)"),
        ("nameless", "nobody names its motion, and it moves most like the queries of 'spin': distance 1.25, quantile"),
        ("alone", "quantile unknown, as no motion has two queries, farthest off by its turning; no flaw"),
        ("flawed", "flaw frozen: its picture stands still for 38% of the clip, which no query does"),
    ],
)
def test_a_row_is_put_into_words(clip_id: str, said: str) -> None:
    (given,) = (one for one in ROWS if one["clip_id"] == clip_id)
    assert said in lawfulness.sentence(given, 0.05)


def test_a_clip_without_a_row_is_told_why() -> None:
    sampled = config.load("demo", {"motion.of": "queries", "motion.sample": 1234})
    assert "motion.of=queries takes a sample of 1,234 clips" in lawfulness.unknown(sampled)
    assert lawfulness.unknown(sampled, "decode: it is cut off.").endswith("not known: decode: it is cut off")
    assert "rank_clips" in lawfulness.unknown(config.load("demo", {"motion.of": "all"}))
