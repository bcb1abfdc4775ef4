"""Clips in several roots, ranked together: as if all of them lay in one."""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from threadpoolctl import threadpool_limits

from pipeline import config, tables
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.errors import ConfigError, FingerprintError, MissingTableError
from pipeline.motion import colours, judge
from pipeline.motion.flaws import FLAWS
from pipeline.ranking import Moment, partitions, products, second_moment, unit_settings
from pipeline.stages.ranking import rank_clips
from pipeline.storage.stores import join
from pipeline.tables import schemas
from pipeline.training import arms

N, K, QUERIES = 600, 16, 6
IDS = [f"clip{n:04d}" for n in np.random.default_rng(5).permutation(N)]
QUERY_IDS = [f"q{n}" for n in range(QUERIES)]
GROUPS = ["spin"] * 3 + ["roll"] * 3
BROKEN, UNREAD, STILL = IDS[0], IDS[1], IDS[2]  # in clips/, in motion/, without a feature under the mask
SETTINGS = [{"timestep": 751, "noise": 0, "mask": "motion"}, {"timestep": 751, "noise": 0, "mask": "none"}]
MOVEMENT = schemas.movement_schema(judge.NUMBERS, len(FLAWS), colours.NUMBERS)
ARMS = (
    *("all", "all_minus_harmful", "weighted", "random", "magnitude", "mask_overlap", "lawful", "caption", "own_loss"),
    *("no_mask", "motive", "motive_whitened", "selected", "curated", "oracle"),
)


def configured(root: Path, *roots: Path, **changes: Any) -> Run:
    values = {
        "root": str(root),
        "ranking.roots": [str(one) for one in roots],
        "ranking.mask": "motion",
        "ranking.fraction": 0.05,
        "motion.of": "all",
        "data.oracle": "motion",
        "attribution.settings": SETTINGS,
        "attribution.projection": {"kind": "gaussian", "dim": K, "seed": 0},
    }
    return config.load("demo", {**values, **{key.replace("__", "."): value for key, value in changes.items()}})


# --- tables -----------------------------------------------------------------------------------------------------------


def numbers(of: str, *shape: int) -> npt.NDArray[np.float32]:
    seed = list(of.encode())
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def segment(clip_id: str, uri: str, **more: Any) -> dict[str, Any]:
    number = int(clip_id[-1])
    words = "a ball that rolls" if number % 2 else "a leaf spinning"
    one = {"uri": uri, "version": "1", "source": "s", "start_frame": 0, "num_frames": 9, "fps": 8.0, "height": 16}
    return {"clip_id": clip_id, "width": 16, "caption": words, "cuts": [], **one, **more}


def mask(clip_id: str) -> bytes:
    values = np.zeros(32, np.uint8)
    values[:: 1 + int(clip_id[-1])] = 255
    return values.tobytes()


def movement(ids: Sequence[str]) -> pa.Table:
    blank = {"version": "1", "colours": [1 / colours.NUMBERS] * colours.NUMBERS}
    rows = [
        {
            "clip_id": i,
            "description": np.abs(numbers(f"moves {i}", judge.NUMBERS)).tolist(),
            "flaws": [0.9 if i.endswith("77") else 0.0] * len(FLAWS),
            **blank,
        }
        for i in ids
    ]
    return pa.Table.from_pylist(rows, schema=MOVEMENT)


def features(ids: Sequence[str]) -> pa.Table:
    common = numbers("common", 2 * K)
    values = np.stack([numbers(f"feature {i}", 2 * K) + common for i in ids])
    norms = np.ones((len(ids), 2), np.float32)
    for n, clip_id in enumerate(ids):
        if clip_id == STILL:
            norms[n, 0], values[n, :K] = 0, 0
    losses = np.stack([numbers(f"loss {i}", 2) for i in ids])
    columns = [
        *(pa.array(ids), pa.array(["1"] * len(ids)), tables.vectors(values), tables.vectors(norms)),
        *(tables.vectors(losses), pa.array([9] * len(ids), pa.int32()), pa.nulls(len(ids), pa.string())),
    ]
    return pa.table(columns, schema=schemas.features_schema(2, K))


def write(run: Run, ids: Sequence[str], part: int) -> None:
    """The tables of a run that has worked these clips, in parts of so many rows, and the queries."""
    root = run.root
    extra = pa.field("motion", pa.string())
    of = {i: "roll" if int(i[-1]) % 2 else "spin" for i in ids}
    for start in range(0, len(ids), part):
        some = ids[start : start + part]
        errors = {BROKEN: "decode: it is cut off"}
        rows = [segment(i, f"{i}.mp4", motion=of[i], error=errors.get(i)) for i in some]
        fingerprint = fingerprints.clips(run)
        clips = pa.Table.from_pylist(rows, schema=schemas.CLIPS.append(extra))
        tables.append(join(root, "clips"), clips, fingerprint)
        moved = [
            {**row, "mask": mask(row["clip_id"]), "mask_shape": [2, 4, 4], "motion_mean": float(row["clip_id"][-2:])}
            if row["clip_id"] != UNREAD
            else {**row, "error": "timeout: too slow"}
            for row in rows
            if row["error"] is None
        ]
        motion = pa.Table.from_pylist(moved, schema=schemas.motion_schema(schemas.CLIPS.append(extra)))
        tables.append(join(root, "motion/clips"), motion, fingerprints.motion(run))
        good = [row["clip_id"] for row in moved if row["clip_id"] != UNREAD]
        tables.append(join(root, "movement/clips"), movement(good), fingerprints.movement(run))
        of_clips = fingerprints.features(run.of("clips"))
        tables.append(join(root, "features/clips"), features(good), of_clips, settings=SETTINGS)
    queries = [segment(i, f"{i}.mp4", group=g) for i, g in zip(QUERY_IDS, GROUPS, strict=True)]
    tables.append(join(root, "queries"), pa.Table.from_pylist(queries, schema=schemas.QUERIES), fingerprints.clips(run))
    moving = [{**row, "mask": mask(row["clip_id"]), "mask_shape": [2, 4, 4]} for row in queries]
    motion = pa.Table.from_pylist(moving, schema=schemas.motion_schema(schemas.QUERIES))
    tables.append(join(root, "motion/queries"), motion, fingerprints.motion(run))
    tables.append(join(root, "movement/queries"), movement(QUERY_IDS), fingerprints.movement(run))
    of_queries = fingerprints.features(run.of("queries"))
    tables.append(join(root, "features/queries"), features(QUERY_IDS), of_queries, settings=SETTINGS)


def decide(run: Run, ids: Sequence[str]) -> None:
    """A person keeps the clips whose id ends with 5 and drops those with 6."""
    at = datetime.datetime(2026, 11, 29, tzinfo=datetime.UTC)
    said = {"batch": "b", "group": "all", "by": "ann", "at": at, "blind": False, "version": "1"}
    words = [{**said, "clip_id": i, "say": "keep" if i[-1] == "5" else "drop"} for i in ids if i[-1] in "56"]
    rows = pa.Table.from_pylist(words, schema=schemas.DECISIONS)
    tables.append(join(run.root, "decisions"), rows, fingerprints.clips(run))


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All clips in `one`, and the same in `a`, `b` and `c`; the second with its queries alone changed."""
    home = tmp_path_factory.mktemp("partitions")
    shares = {"one": (IDS, 250), "a": (IDS[:100], 33), "b": (IDS[100:101], 10), "c": (IDS[101:], 400)}
    for name, (ids, part) in shares.items():
        run = configured(home / name)
        write(run, ids, part)
        decide(run, ids)
    return {name: home / name for name in (*shares, "joint")}


@pytest.fixture(scope="module")
def ranked(roots: dict[str, Path]) -> tuple[Run, Run]:
    """One root, and three ranked together in a root of their own."""
    one = configured(roots["one"])
    joint = configured(roots["joint"], roots["c"], roots["a"], roots["b"])
    for run in (one, joint):
        rank_clips(run)
    return one, joint


def table(run: Run, name: str, *by: str) -> pa.Table:
    rows = tables.read(join(run.root, name))
    assert rows is not None
    return rows.sort_by([(column, "ascending") for column in by]).combine_chunks() if by else rows.combine_chunks()


# --- what it is -------------------------------------------------------------------------------------------------------


def test_several_roots_are_ranked_as_one_to_the_bit(ranked: tuple[Run, Run]) -> None:
    """Order, decisions, reasons and numbers; also of clips that failed, in whichever root."""
    one, joint = ranked
    assert table(joint, "selection").equals(table(one, "selection")), "rows come in the order of the ranking"
    assert table(joint, "neighbors").equals(table(one, "neighbors"))
    for name in ("influence", "lawfulness"):
        assert table(joint, name, "clip_id").equals(table(one, name, "clip_id")), name
    decided = table(one, "selection").column("decision").value_counts().to_pylist()
    assert {row["values"] for row in decided} == {"selected", "neutral", "harmful"}, "the example decides nothing"
    reasons = {row["clip_id"]: row["reason"] for row in table(joint, "selection").to_pylist()}
    assert reasons[BROKEN] == "not ranked: decode: it is cut off"
    assert reasons[UNREAD] == "not ranked: timeout: too slow"
    assert reasons[STILL].startswith("not ranked: it has no feature")


@pytest.mark.parametrize("change", [{"ranking__whiten": None}, {"ranking__by": "votes"}, {"ranking__mask": "none"}])
def test_by_every_rule(roots: dict[str, Path], tmp_path: Path, change: dict[str, Any]) -> None:
    one = configured(roots["one"], **change).model_copy(update={"root": str(tmp_path / "one")})
    one = one.model_copy(update={"ranking": one.ranking.model_copy(update={"roots": (str(roots["one"]),)})})
    joint = configured(tmp_path / "joint", roots["a"], roots["b"], roots["c"], **change)
    for run in (one, joint):
        rank_clips(run)
    assert table(joint, "selection").equals(table(one, "selection"))


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_trains_on_the_clips_of_all_roots(ranked: tuple[Run, Run], arm: str) -> None:
    """With their videos' places; people's words are those that they said of each root."""
    one, joint = (arms.training_set(run.model_copy(update={"finetune": _arm(run, arm)})) for run in ranked)
    assert one is not None
    assert joint is not None
    assert joint.num_rows > 1
    assert joint.select(one.column_names).equals(one), "another order would be drawn from differently"
    assert set(joint.column("uri").to_pylist()) == {f"{i}.mp4" for i in joint.column("clip_id").to_pylist()}


def _arm(run: Run, arm: str) -> config.Finetune:
    return run.finetune.model_copy(update={"arm": arm})


def test_the_queries_are_those_of_the_first_root_and_lie_in_the_runs_own(ranked: tuple[Run, Run]) -> None:
    one, joint = ranked
    for name in partitions.QUERY_TABLES:
        assert table(joint, name, "clip_id").equals(table(one, name, "clip_id")), name
    tables.append(join(joint.root, "queries"), table(joint, "queries").slice(0, 1), fingerprints.clips(joint))
    partitions.copy_queries(joint)
    assert len(tables.parts(join(joint.root, "queries"))) == 1, "a query that is none of the first root's stays"


def test_a_group_that_is_edited_in_the_first_root_is_that_of_the_next_ranking(tmp_path: Path) -> None:
    """Also where no feature changed, so that influence is read as the last ranking left it."""
    for name, ids in (("a", IDS[:20]), ("b", IDS[20:40])):
        write(configured(tmp_path / name), ids, 50)
    joint = configured(tmp_path / "joint", tmp_path / "a", tmp_path / "b")
    rank_clips(joint)
    first = configured(tmp_path / "a")
    queries = table(first, "queries")
    edited = ["turn" if group == "roll" else group for group in queries.column("group").to_pylist()]
    place = queries.column_names.index("group")
    rows = queries.set_column(place, queries.schema.field("group"), pa.array(edited, pa.string()))
    tables.replace(join(first.root, "queries"), rows, fingerprints.clips(first))
    rank_clips(joint)
    assert {"turn"} == set(table(joint, "selection").column("group").to_pylist()) - {"all", *GROUPS}


def test_a_root_may_rank_its_own_clips_with_those_of_others(roots: dict[str, Path]) -> None:
    run = configured(roots["b"], roots["a"], roots["b"], roots["c"])
    assert partitions.query_root(run) == run.root
    rank_clips(run)
    assert table(run, "selection").equals(table(configured(roots["one"]), "selection"))


@pytest.mark.parametrize("k", [3, 256])
def test_a_second_moment_is_the_same_however_rows_are_shared_out(k: int) -> None:
    phi = unit_settings(numbers("rows", 5000, k) + numbers("shared", k), 1)
    moments = []
    for seed, shares in enumerate((1, 3, 40)):
        order, moment = np.random.default_rng(seed).permutation(len(phi)), Moment(k)
        for rows in np.array_split(phi[order], shares):
            moment.add(second_moment(rows))
        moments.append(moment.total)
    assert (moments[0] == moments[1]).all()
    assert (moments[0] == moments[2]).all()
    exact = phi.astype(np.float64).T @ phi
    assert np.abs(moments[0] - exact).max() < 1e-6 * len(phi), "rounding costs more than float32 has"


def test_a_second_moment_of_one_coordinate_alone_is_exact() -> None:
    """Where the numbers are as large as they can be."""
    moment, phi = Moment(1), np.ones((8192, 1), np.float32)
    for _ in range(3):
        moment.add(second_moment(phi))
    moment.add(second_moment(phi[:1]))
    assert moment.total.item() == 3 * 8192 + 1


@pytest.mark.parametrize("queries", [1, 6, 50])
@pytest.mark.parametrize("k", [3, 64, 2048])
def test_a_clips_score_does_not_depend_on_the_clips_around_it(k: int, queries: int) -> None:
    """BLAS computes few rows, and those at an edge, in another order, which this must not show."""
    phi, q = numbers("rows", 4200, k), numbers("queries", queries, k)
    with threadpool_limits(1, "blas"):
        whole = products(phi, q)
        for start, count in ((0, 1), (1, 2), (7, 100), (96, 255), (13, 1001), (4095, 105)):
            assert (products(phi[start : start + count], q) == whole[start : start + count]).all(), (start, count)
    assert np.allclose(whole, phi @ q.T, atol=1e-3)


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(run: Run, kind: type[Exception], *words: str) -> None:
    with pytest.raises(kind) as caught:
        rank_clips(run)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert not Path(run.root).exists(), "something was written"


def test_a_root_is_named_once_however_it_is_spelt(roots: dict[str, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(roots["a"])
    for other in (str(roots["a"]), f"{roots['a']}/", f"{roots['a'].parent}/./{roots['a'].name}", str(link)):
        run = configured(tmp_path / "joint", **{"ranking.roots": [str(roots["a"]), str(roots["c"]), other]})
        refused(run, ConfigError, "ranking.roots", "twice", str(roots["a"]))
    assert partitions.spelling("s3a://bucket//run/") == partitions.spelling("s3://bucket/run")


def test_a_root_without_features_is_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    refused(configured(tmp_path / "joint", roots["a"], tmp_path), MissingTableError, str(tmp_path), "features/clips")
    unqueried = tmp_path / "unqueried"
    fingerprint = fingerprints.features(configured(unqueried).of("clips"))
    tables.append(join(str(unqueried), "features/clips"), features(["z1"]), fingerprint, settings=SETTINGS)
    refused(configured(tmp_path / "joint", unqueried), MissingTableError, "features/queries", str(unqueried))


def test_roots_of_another_fingerprint_are_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    write(configured(tmp_path / "other", seed=7), ["clip9999"], 10)
    refused(configured(tmp_path / "joint", roots["a"], tmp_path / "other"), FingerprintError, "seed=7", "seed=0")


def test_roots_that_share_a_clip_are_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    write(configured(tmp_path / "other"), ["clip9999", *sorted(IDS[:100])[3:5]], 10)
    run = configured(tmp_path / "joint", roots["a"], roots["c"], tmp_path / "other")
    first = sorted(IDS[:100])[3]
    refused(run, ConfigError, "2 clips", repr(first), f"{first}.mp4", str(roots["a"]), str(tmp_path / "other"))


def test_a_shortlist_is_of_one_root(roots: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ranking\.roots"):
        configured(tmp_path, roots["a"], **{"attribution.shortlist": {"top": 0.2, "frames": 5}})


@pytest.mark.parametrize("job", ["purge", "explain", "workbench"])
def test_jobs_of_one_root_say_so(roots: dict[str, Path], tmp_path: Path, job: str) -> None:
    changes = [f"root={tmp_path / 'joint'}", f"ranking.roots=[{roots['a']}, {roots['c']}]", "purge.clips=[a]"]
    command = [sys.executable, "-m", f"jobs.{job}", "--config", "demo", *(f"--set={change}" for change in changes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "ranking.roots" in done.stderr
    assert "Run it for each of these roots" in done.stderr
    assert not (tmp_path / "joint").exists()
