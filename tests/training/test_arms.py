"""Each arm's rule, on a run of forty clips and four queries whose features, masks and motion are made up."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline import tables
from pipeline.config import Run, parse
from pipeline.errors import ConfigError, MissingTableError, UsageError
from pipeline.ranking import influence, order, select, unit_settings
from pipeline.ranking.selection import influence_tables, rank
from pipeline.storage import stores
from pipeline.tables import schemas
from pipeline.training import arms

N, K = 40, 8
IDS = [f"c{n:02d}" for n in range(N)]
BROKEN, STILL, NOT_FINITE, UNREAD = "c00", "c01", "c02", "c03"  # in clips/, motion/, features/, motion/
SETTINGS = [{"timestep": 751.0, "noise": 0, "mask": "motion"}, {"timestep": 751.0, "noise": 0, "mask": "none"}]
DECODABLE = [i for i in IDS if i not in (BROKEN, UNREAD)]
FEATURED = [i for i in DECODABLE if i not in (STILL, NOT_FINITE)]  # 36 with a masked feature: a tenth is 4


def configured(root: Path, arm: str, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "root": str(root),
        "data": {"videos": "clips.csv", "oracle": "motion"},
        "queries": {"videos": "queries"},
        "model": {"id": "a/b"},
        "attribution": {"settings": SETTINGS, "projection": {"dim": K}},
        "finetune": {"arm": arm, "group": "all"},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        values.setdefault(section, {})[name] = value
    return parse(values, "test")


def features(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 2, K)).astype(np.float32)


def features_table(ids: list[str], values: np.ndarray, errors: dict[str, str], still: str | None) -> pa.Table:
    norms = np.ones((len(ids), 2), np.float32)
    for n, i in enumerate(ids):
        if i == still:
            norms[n, 0], values[n, 0] = 0, 0
    valid = np.array([i not in errors for i in ids])
    columns = {
        "clip_id": pa.array(ids),
        "version": pa.array(["1"] * len(ids)),
        "feature": tables.vectors(values.reshape(len(ids), -1), valid),
        "norm": tables.vectors(norms, valid),
        "loss": tables.vectors(np.array([[37 * int(i[1:]) % N] * 2 for i in ids], np.float32), valid),
        "num_frames": pa.array([5] * len(ids), pa.int32()),
        "error": pa.array([errors.get(i) for i in ids], pa.string()),
    }
    return pa.table(columns, schema=schemas.features_schema(2, K))


_CAPTIONS = ("a ball that rolls", "a leaf falling down")


def segments(ids: list[str], schema: pa.Schema, **more: list[Any]) -> pa.Table:
    one = {"uri": "v.mp4", "version": "1", "source": "s", "start_frame": 0, "num_frames": 5, "fps": 8.0, "height": 16}
    rows = [{**one, "clip_id": i, "width": 16, "caption": _CAPTIONS[int(i[1:]) % 2], "cuts": []} for i in ids]
    for key, values in more.items():
        for row, value in zip(rows, values, strict=True):
            row[key] = value
    return pa.Table.from_pylist(rows, schema=schema)


def mask_of(n: int) -> bytes:
    """2 latent frames of 4x4 with one bright pixel, and an odd one of another shape."""
    values = np.zeros(32, np.uint8)
    values[n % 32] = 255
    return values.tobytes()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    at = str(folder)
    clips = schemas.CLIPS.append(pa.field("motion", pa.string()))
    motions = [["roll", "fall", "spin"][n % 3] for n in range(N)]
    broken = [f"decode: {i}" if i == BROKEN else None for i in IDS]
    tables.append(stores.join(at, "clips"), segments(IDS, clips, motion=motions, error=broken), {})
    queries, groups = ["q0", "q1", "q2", "q3"], ["roll", "roll", "fall", "fall"]
    tables.append(stores.join(at, "queries"), segments(queries, schemas.QUERIES, group=groups), {})
    errors = {STILL: "no_motion: it rests", UNREAD: "timeout: too slow"}
    rows = [i for i in IDS if i != BROKEN]
    moved = segments(
        rows,
        schemas.motion_schema(clips),
        motion=[motions[IDS.index(i)] for i in rows],
        mask=[None if i in errors else mask_of(IDS.index(i)) for i in rows],
        mask_shape=[None if i in errors else ([2, 4, 4] if i != "c39" else [4, 4, 2]) for i in rows],
        motion_mean=[None if i == UNREAD else float(IDS.index(i) % 17) for i in rows],
        error=[errors.get(i) for i in rows],
    )
    tables.append(stores.join(at, "motion/clips"), moved, {})
    masks = [mask_of(7), mask_of(9), mask_of(11), mask_of(7)]
    shapes = [[2, 4, 4]] * 4
    moving = segments(queries, schemas.motion_schema(schemas.QUERIES), group=groups, mask=masks, mask_shape=shapes)
    tables.append(stores.join(at, "motion/queries"), moving, {})
    rows = [i for i in rows if i != UNREAD]
    feature_rows = features_table(
        rows, features(N, 0)[[IDS.index(i) for i in rows]], {NOT_FINITE: "not_finite: nan"}, STILL
    )
    tables.append(stores.join(at, "features/clips"), feature_rows, {}, settings=SETTINGS)
    tables.append(
        stores.join(at, "features/queries"), features_table(queries, features(4, 1), {}, None), {}, settings=SETTINGS
    )
    selected = [with_group(columns, group) for group, columns in (("all", [0, 1, 2, 3]), ("fall", [2, 3]))]
    tables.append(stores.join(at, "selection"), pa.concat_tables(selected), {})
    law = {"group": "fall", "quantile": 0.5, "law": "jerk"}
    lawful = [
        {"clip_id": i, "distance": abs(n - 20.2), "named_by": "flow" if i == "c20" else "caption", **law}
        for n, i in enumerate(DECODABLE)
    ]
    tables.replace(stores.join(at, "lawfulness"), pa.Table.from_pylist(lawful, schema=schemas.LAWFULNESS), {})
    return folder


def expected(
    setting: int, whiten: float | None, queries: list[int], of_queries: int | None = None
) -> tuple[list[str], np.ndarray]:
    """Clips with features of a setting, and their influence on queries, of the same setting or of another one."""
    ids = FEATURED if setting == 0 else [i for i in DECODABLE if i != NOT_FINITE]
    rows = unit_settings(features(N, 0)[[IDS.index(i) for i in ids], setting], 1)
    return ids, influence(rows, features(4, 1)[queries, setting if of_queries is None else of_queries], whiten)


def with_group(queries: list[int], group: str) -> pa.Table:
    ids, influences = expected(0, 0.01, queries)
    unlawful = {ids[n]: "law" for n in range(0, len(ids), 5 + len(queries))}  # others for each group
    table = select(influences, ids, harmful=0.2, unlawful=unlawful)
    table = table.append_column("group", pa.array([group] * table.num_rows))
    unranked = [{"clip_id": STILL, "group": group, "decision": "neutral", "weight": 0.0}]
    ranked = table.select(schemas.SELECTION.names).cast(schemas.SELECTION)
    return pa.concat_tables([ranked, pa.Table.from_pylist(unranked, schema=schemas.SELECTION)])


def chosen(root: Path, arm: str, **changes: Any) -> list[str]:
    """The ids of an arm that weighs its clips alike."""
    table = arms.training_set(configured(root, arm, **changes))
    assert table is not None
    weights = table.column("weight").to_numpy()
    assert weights == pytest.approx(1 / len(weights)), f"{arm} does not weigh its clips alike"
    assert set(schemas.CLIPS.names) <= set(table.column_names), "rows must say where their frames are"
    ids: list[str] = table.column("clip_id").to_pylist()
    assert ids == sorted(ids)
    return ids


def test_base_trains_on_nothing(root: Path) -> None:
    assert arms.training_set(configured(root, "base")) is None


def test_all_is_every_decodable_clip(root: Path) -> None:
    assert chosen(root, "all") == DECODABLE


def drawn(clip_ids: list[str]) -> list[str]:
    ordered_ids: list[str] = arms.by_hash(0, pa.array(clip_ids)).to_pylist()
    return ordered_ids


def test_random_belongs_to_seed_and_id(root: Path) -> None:
    first = chosen(root, "random")
    assert len(first) == 4
    assert first == sorted(drawn(DECODABLE)[:4])
    assert first == sorted(drawn(DECODABLE[::-1])[:4]), "the order of the rows must not matter"
    whole = sorted(DECODABLE, key=lambda i: hashlib.blake2b(f"0 {i}".encode(), digest_size=16).digest())
    assert drawn(DECODABLE) == whole, "the order of an earlier version's runs"
    other = parse({**configured(root, "random").model_dump(mode="json"), "seed": 1}, "test")
    assert arms.training_set(other).column("clip_id").to_pylist() != first
    without = [i for i in drawn(DECODABLE) if i != first[0]]
    assert set(first[1:]) <= set(without[:4]), "one clip less must not draw all others anew"


def test_magnitude_takes_the_fastest_and_ties_by_id(root: Path) -> None:
    assert chosen(root, "magnitude") == ["c15", "c16", "c32", "c33"]
    five = chosen(root, "magnitude", ranking__fraction=0.14)
    assert five == ["c14", "c15", "c16", "c32", "c33"], "c14 and c31 are as fast: c14 comes first"


def test_mask_overlap_takes_the_masks_closest_to_the_queries(root: Path) -> None:
    # The queries have pixels 7 (two of them), 9 and 11. c39 has pixel 7 too, but another shape; the rest overlap none.
    assert chosen(root, "mask_overlap") == ["c02", "c07", "c09", "c11"]
    of_fall = chosen(root, "mask_overlap", finetune__group="fall", finetune__arm="mask_overlap")
    assert of_fall == ["c02", "c04", "c07", "c11"]


@pytest.mark.parametrize(
    ("arm", "setting", "whiten", "by"),
    [("no_mask", 1, None, "votes"), ("motive", 0, None, "votes"), ("motive_whitened", 0, 0.01, "mean")],
)
@pytest.mark.parametrize(("group", "queries"), [("all", [0, 1, 2, 3]), ("fall", [2, 3])])
def test_influence_arms_take_the_first_of_their_ranking(
    root: Path, arm: str, setting: int, whiten: float | None, by: Any, group: str, queries: list[int]
) -> None:
    ids, influences = expected(setting, whiten, queries)
    best = [ids[i] for i in order(influences, ids, by, 0.1)[:4]]
    table = arms.training_set(configured(root, arm, finetune__group=group, finetune__arm=arm))
    assert table.column("clip_id").to_pylist() == sorted(best)


def harmful(root: Path, group: str = "all") -> set[str]:
    selection = tables.read(stores.join(str(root), "selection")).to_pylist()
    return {r["clip_id"] for r in selection if r["group"] == group and r["decision"] == "harmful"}


def test_lawful_are_the_nearest_of_those_that_are_named(root: Path) -> None:
    near = sorted((abs(n - 20.2), i) for n, i in enumerate(DECODABLE) if i != "c20")
    assert chosen(root, "lawful") == sorted(i for _, i in near[:4])


def test_caption_takes_those_that_the_words_name(root: Path) -> None:
    fall = [i for i in DECODABLE if int(i[1:]) % 2]
    assert chosen(root, "caption", finetune__group="fall", finetune__arm="caption") == sorted(drawn(fall)[:4])
    assert chosen(root, "caption") == sorted(drawn(DECODABLE)[:4])


def test_own_loss_takes_the_highest(root: Path) -> None:
    hardest = sorted(FEATURED, key=lambda i: -((37 * int(i[1:])) % N))[:4]
    assert chosen(root, "own_loss") == sorted(hardest)


def embedded(folder: Path, names: list[str], values: np.ndarray) -> str:
    """A curator's folder of embeddings, in two files."""
    folder.mkdir(parents=True)
    half = len(names) // 2
    for part, rows in (("a", slice(0, half)), ("b", slice(half, None))):
        columns = {"id": names[rows], "embedding": pa.array(list(values[rows]), pa.list_(pa.float32()))}
        pa.parquet.write_table(pa.table(columns), folder / f"{part}.parquet")
    return str(folder)


@pytest.fixture
def embedded_root(root: Path, tmp_path: Path) -> tuple[Path, dict[str, Any], np.ndarray]:
    """A run whose clips lie in files of their own, its keys for the arm embedding, and the cosines [clips, queries]."""
    copy = tmp_path / "run"
    shutil.copytree(root, copy)
    for name in ("clips", "queries"):
        table = tables.read(stores.join(str(copy), name))
        uris = pa.array([f"s3://videos.of/{name}/{i}.mp4" for i in table.column("clip_id").to_pylist()])
        table = table.set_column(table.schema.get_field_index("uri"), "uri", uris)
        tables.replace(stores.join(str(copy), name), table, {})
    rng = np.random.default_rng(1)
    of_clips, of_queries = rng.standard_normal((N, 6)) * rng.uniform(1, 9, (N, 1)), rng.standard_normal((4, 6))
    (tmp_path / "videos").mkdir()
    embedded(tmp_path / "videos" / "ce1_embd_parquet", IDS, of_clips)
    keys = {
        "data__videos": str(tmp_path / "videos"),
        "queries__embeddings": embedded(tmp_path / "asked", ["q0", "q1", "q2", "q3"], of_queries),
    }
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (of_clips, of_queries)]
    return copy, keys, unit[0] @ unit[1].T


def test_embedding_takes_the_nearest_to_the_queries(embedded_root: tuple[Path, dict[str, Any], np.ndarray]) -> None:
    root, keys, cosines = embedded_root
    for group, queries in (("all", [0, 1, 2, 3]), ("roll", [0, 1]), ("fall", [2, 3])):
        order = np.argsort(-cosines[:, queries].mean(1))
        nearest = [IDS[n] for n in order if IDS[n] in DECODABLE][:4]
        asked = {**keys, "finetune__group": group, "finetune__arm": "embedding"}
        assert chosen(root, "embedding", **asked) == sorted(nearest), group


def test_what_embeddings_lack_is_said(
    embedded_root: tuple[Path, dict[str, Any], np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, keys, _ = embedded_root
    some = DECODABLE[:9]
    few = embedded(tmp_path / "few", some, np.ones((9, 6)) * np.arange(9)[:, None])  # of the first nothing is known
    assert len(chosen(root, "embedding", **{**keys, "data__embeddings": few})) == 4
    assert f"{len(DECODABLE) - 8} of {len(DECODABLE)} clips have no embedding" in caplog.text
    other = embedded(tmp_path / "other", ["x", "y"], np.ones((2, 6)))
    narrow = embedded(tmp_path / "narrow", some, np.ones((9, 5)))
    pa.parquet.write_table(pa.table({"clip": ["a"], "vector": [[1.0]]}), tmp_path / "strange.parquet")
    for changes, words in (
        ({"data__embeddings": other}, ["none of the 38 videos of the clips", "'c01'"]),
        ({"data__embeddings": narrow}, ["have 5 numbers", "6: they are of two models"]),
        ({"data__embeddings": str(tmp_path / "strange.parquet")}, ["clip (string)", "id and embedding"]),
        ({"data__embeddings": str(tmp_path / "absent")}, ["data.embeddings=", "no such file or folder"]),
        ({"queries__embeddings": None}, ["queries.embeddings is null", "no folder *_embd_parquet"]),
    ):
        with pytest.raises(UsageError) as caught:
            arms.training_set(configured(root, "embedding", **{**keys, **changes}))
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_motive_whitened_is_the_first_of_the_ranking_harmful_or_not(root: Path) -> None:
    ids, influences = expected(0, 0.01, [0, 1, 2, 3])
    assert chosen(root, "motive_whitened") == sorted(ids[i] for i in order(influences, ids, "mean", 0.1)[:4])


def test_selected_is_the_selection_where_the_ranking_is_the_default(root: Path) -> None:
    selection = tables.read(stores.join(str(root), "selection"))
    rows = [r for r in selection.to_pylist() if r["group"] == "all" and r["decision"] == "selected"]
    assert chosen(root, "selected") == sorted(r["clip_id"] for r in rows)


@pytest.mark.parametrize(
    ("mask", "setting", "whiten", "by"),
    [("queries", 1, 0.01, "mean"), ("none", 1, None, "votes"), ("motion", 0, 0.1, "mean")],
)
def test_selected_follows_the_recipes_ranking(
    root: Path, mask: str, setting: int, whiten: float | None, by: Any
) -> None:
    of_queries = 0 if mask == "queries" else setting  # a clip's plain gradient, and the queries' motion
    ids, influences = expected(setting, whiten, [0, 1, 2, 3], of_queries)
    best = [ids[i] for i in order(influences, ids, by, 0.1) if ids[i] not in harmful(root)][:4]
    assert chosen(root, "selected", ranking__mask=mask, ranking__whiten=whiten, ranking__by=by) == sorted(best)


def test_whitening_stands_where_the_ranking_has_none(root: Path) -> None:
    assert chosen(root, "motive_whitened", ranking__whiten=None) == chosen(root, "motive_whitened")


def test_all_minus_harmful_drops_the_groups_harmful_ones_only(root: Path) -> None:
    for group in ("all", "fall"):
        assert harmful(root, group)
        clip_ids = chosen(root, "all_minus_harmful", finetune__group=group, finetune__arm="all_minus_harmful")
        assert clip_ids == [i for i in DECODABLE if i not in harmful(root, group)]


def test_weighted_follows_the_positive_influence(root: Path) -> None:
    table = arms.training_set(configured(root, "weighted"))
    ids, influences = expected(0, 0.01, [0, 1, 2, 3])
    positive = zip(ids, np.maximum(influences.mean(1), 0), strict=True)
    mean = {clip_id: m for clip_id, m in positive if clip_id not in harmful(root)}
    weights = dict(zip(table.column("clip_id").to_pylist(), table.column("weight").to_pylist(), strict=True))
    assert sum(weights.values()) == pytest.approx(1)
    assert weights == pytest.approx({i: m / sum(mean.values()) for i, m in mean.items() if m > 0}, rel=1e-4)


def test_oracle_takes_the_true_group(root: Path) -> None:
    fall = [i for i in DECODABLE if int(i[1:]) % 3 == 1]
    assert chosen(root, "oracle", finetune__group="fall", finetune__arm="oracle") == sorted(drawn(fall)[:4])
    either = [i for i in DECODABLE if int(i[1:]) % 3 != 2]
    assert chosen(root, "oracle") == sorted(drawn(either)[:4])


def decide(root: Path, tmp_path: Path, words: dict[str, str], **more: Any) -> Path:
    """A copy of the run in which one person has spoken."""
    copy = tmp_path / "run"
    shutil.copytree(root, copy)
    empty = dict.fromkeys(schemas.DECISIONS.names) | {"batch": "b", "group": "all", "by": "ann", "version": "1"}
    at = datetime.datetime(2026, 11, 28, tzinfo=datetime.UTC)
    rows = [{**empty, "clip_id": i, "say": say, "at": at, **more} for i, say in words.items()]
    tables.append(stores.join(str(copy), "decisions"), pa.Table.from_pylist(rows, schema=schemas.DECISIONS), {})
    return copy


def test_curated_is_the_selected_where_nobody_has_spoken(root: Path) -> None:
    assert chosen(root, "curated") == chosen(root, "selected")


def test_curated_follows_people_and_is_filled_up_to_the_same_size(root: Path, tmp_path: Path) -> None:
    ids, influences = expected(0, 0.01, [0, 1, 2, 3])
    ranked = [ids[i] for i in order(influences, ids, "mean", 0.1) if ids[i] not in harmful(root)]
    worst, bad = ranked[-1], sorted(harmful(root))[0]
    copy = decide(root, tmp_path, {ranked[0]: "drop", worst: "keep", bad: "keep", STILL: "keep", UNREAD: "keep"})
    assert chosen(copy, "curated") == sorted([worst, bad, STILL, ranked[1]]), "what cannot be decoded is not trained on"
    assert chosen(copy, "selected") == chosen(root, "selected"), "selected stays the machine's"


def test_curated_of_a_group_follows_words_on_it_and_on_all(root: Path, tmp_path: Path) -> None:
    first = chosen(root, "curated", finetune__group="fall")
    copy = decide(root, tmp_path, {first[0]: "drop"}, group="fall")
    assert first[0] not in chosen(copy, "curated", finetune__group="fall")
    assert chosen(copy, "curated") == chosen(root, "curated"), "a word on one motion is none on all"
    assert len(chosen(copy, "curated", finetune__group="fall")) == len(first)


def test_curated_ranks_by_the_weights_of_queries(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(root, copy)
    at = datetime.datetime(2026, 11, 28, tzinfo=datetime.UTC)
    weights = {"q0": 1.0, "q1": -1.0, "q2": 0.0, "q3": 0.5}
    rows = [{"batch": "b", "query_id": q, "weight": w, "by": "ann", "at": at} for q, w in weights.items()]
    table = pa.Table.from_pylist(rows, schema=schemas.QUERY_WEIGHTS)
    tables.append(stores.join(str(copy), "query_weights"), table, {})
    ids, influences = expected(0, 0.01, [0, 1, 2, 3])
    mean = influences @ np.array(list(weights.values())) / 2.5
    best = [ids[i] for i in np.argsort(-mean) if ids[i] not in harmful(root)][:4]
    assert chosen(copy, "curated") == sorted(best)
    assert chosen(copy, "selected") == chosen(root, "selected")


def test_every_picking_arm_gets_the_same_number(root: Path) -> None:
    picking = (
        *("random", "magnitude", "mask_overlap", "lawful", "caption", "own_loss"),
        *("no_mask", "motive", "motive_whitened", "selected", "curated", "oracle"),
    )
    for fraction, count in ((0.1, 4), (0.25, 9), (0.001, 1)):
        for arm in picking:
            assert len(chosen(root, arm, ranking__fraction=fraction)) == count, arm


@pytest.mark.parametrize(
    ("arm", "changes", "words"),
    [
        ("no_mask", {"attribution__settings": SETTINGS[:1]}, ["no_mask", "attribution.settings", "mask: none"]),
        ("motive", {"attribution__settings": SETTINGS[1:], "ranking__mask": "none"}, ["motive", "mask: motion"]),
        ("oracle", {"data__oracle": None}, ["data.oracle", "null"]),
        ("oracle", {"data__oracle": "truth"}, ["data.oracle='truth'", "motion"]),
        ("motive", {"finetune__group": "swing"}, ["finetune.group='swing'", "all, fall, roll"]),
        ("weighted", {"finetune__group": "roll"}, ["finetune.group='roll'", "all, fall"]),
    ],
)
def test_what_an_arm_lacks_is_said(root: Path, arm: str, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        arms.training_set(configured(root, arm, **{"finetune__arm": arm, **changes}))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_missing_table_names_the_job(tmp_path: Path) -> None:
    with pytest.raises(MissingTableError, match=r"clips/.*jobs\.index_clips"):
        arms.training_set(configured(tmp_path, "all"))


def test_arms_are_checked_before_anything_runs(tmp_path: Path) -> None:
    arms.check(configured(tmp_path, "motive", evaluate__arms=["base", "no_mask", "oracle"]))
    with pytest.raises(ConfigError, match="no_mask"):
        arms.check(configured(tmp_path, "motive", evaluate__arms=["no_mask"], attribution__settings=SETTINGS[:1]))


def test_the_curated_set_is_a_list_of_segments(root: Path, tmp_path: Path) -> None:
    rows = arms.training_set(configured(root, "motive"))
    path = arms.write_curated(str(tmp_path / "curated"), rows)
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert Path(path).name == "segments.jsonl", "load_dataset takes metadata.jsonl for its own"
    assert [line["clip_id"] for line in lines] == rows.column("clip_id").to_pylist()
    assert set(lines[0]) == {"file_name", "caption", "clip_id", "start_frame", "num_frames", "fps", "weight"}
    assert (lines[0]["file_name"], lines[0]["fps"]) == ("v.mp4", 8.0)
    readme = (tmp_path / "curated" / "README.txt").read_text()
    assert all(f"  {column} " in readme for column in lines[0]), "a column is not explained"
    assert "not a data set" in readme


@pytest.mark.parametrize(("change", "read"), [("", True), ("whiten", False), ("clips", False), ("features", False)])
def test_a_ranking_that_is_written_down_is_not_computed_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, read: bool
) -> None:
    """Only where it is of the same features, clips, mask and whitening; the arm's clips are the same either way."""
    at = str(shutil.copytree(root, tmp_path / "run"))
    run = configured(Path(at), "selected")
    ranked = rank(run, run.ranking.mask, run.ranking.whiten)
    fingerprint = {"ranking": run.ranking.model_dump()} | ({"numerics": 0} if change == "features" else {})
    if change == "features":
        one = tables.read(stores.join(at, "features/clips"))
        tables.replace(stores.join(at, "features/clips"), one, {"numerics": 1}, settings=SETTINGS)
    written = pa.concat_tables(influence_tables(ranked))
    written = written.slice(1) if change == "clips" else written
    tables.replace(stores.join(at, "influence"), written, fingerprint, query_ids=ranked.query_ids)
    computed = list[str]()
    monkeypatch.setattr(arms, "rank", lambda run, mask, whiten: computed.append(mask) or rank(run, mask, whiten))
    changes = {"ranking__whiten": 0.5} if change == "whiten" else {}
    clip_ids = chosen(Path(at), "selected", **changes)
    assert (computed == []) is read
    assert clip_ids == chosen(root, "selected", **changes)
