"""Arms compared: verdicts and intervals, the job twice over, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pytest

from jobs import compare as job
from jobs.compare import compare
from pipeline import config, tables
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.errors import ClipError, ConfigError, MissingTableError
from pipeline.evaluation import comparison, contests
from pipeline.evaluation.movement import VIDEO, DescriptionWorker
from pipeline.pages import comparison as comparison_page
from pipeline.pages.comparison import Compared
from pipeline.stages import finetuning, indexing, judging
from pipeline.storage import stores
from pipeline.tables import schemas
from pipeline.training import arms
from pipeline.video.frames import write_mp4
from tests.support.registered import unregistered
from tests.support.studies import run_of

MakeRun = Callable[..., Run]
ARMS = ["base", "random", "all"]


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_win_tie_and_loss_are_those_of_the_scores() -> None:
    scores = {
        "a": {("x", 0): 1.0, ("y", 0): 1.0, ("z", 0): 2.0, ("only", 0): 9.0},
        "b": {("x", 0): 2.0, ("y", 0): 1.001, ("z", 0): 1.0},
    }
    verdicts = contests.verdicts("j", scores, 0.01)
    assert [(v["clip_id"], v["verdict"]) for v in verdicts] == [("x", 1), ("y", 0), ("z", -1)]
    (tally,) = contests.tallies(verdicts)
    assert (tally["pairs"], tally["wins"], tally["ties"], tally["losses"]) == (3, 1, 1, 1)
    assert tally["win"] == pytest.approx(1 / 3)
    assert 0 <= tally["win_low"] <= tally["win"] <= tally["win_high"] <= 1


def test_every_pair_of_arms_meets_once() -> None:
    scores = {arm: {(f"c{i}", 0): float(i + n) for i in range(4)} for n, arm in enumerate("abcd")}
    tallies = contests.tallies(contests.verdicts("j", scores, 0.0))
    assert sorted((t["ours"], t["theirs"]) for t in tallies) == [(a, b) for a in "abcd" for b in "abcd" if a < b]
    assert all(t["win"] == 1 for t in tallies), "the lower score wins"


def test_seeds_of_one_clip_hang_together() -> None:
    clips, values = [f"c{i}" for i in range(20)], np.random.default_rng(0).standard_normal(20)
    one = contests.interval(values.tolist(), clips)
    many = contests.interval(np.repeat(values, 5).tolist(), np.repeat(clips, 5).tolist())
    assert many == pytest.approx(one), "repeating a clip's value told something new"
    assert contests.interval([1.0, 2.0], ["c", "c"]) == (1.5, None, None)


@pytest.mark.parametrize("clips", [4, 10, 40])
def test_what_never_happened_may_still_happen(clips: int) -> None:
    scores = {"a": {(f"c{i}", 0): 1.0 for i in range(clips)}, "b": {(f"c{i}", 0): 1.0 for i in range(clips)}}
    (tally,) = contests.tallies(contests.verdicts("j", scores, 0.01))
    assert (tally["win"], tally["win_low"]) == (0, 0)
    assert 1 / clips < tally["win_high"] < 4 / clips
    assert 1 - 4 / clips < tally["tie_low"] < tally["tie_high"] == pytest.approx(1)


def test_metrics_have_intervals_and_differences_paired_with_base() -> None:
    rng, rows = np.random.default_rng(1), []
    for i in range(30):
        level = 1 + rng.standard_normal()
        for arm, shift in (("base", 0.0), ("random", 0.01), ("motive", -0.1)):
            fields = {"arm": arm, "clip_id": f"c{i}", "uri": "", "seed": 0, "metric": "masked_loss", "version": "v"}
            rows.append({**fields, "value": level + shift + 0.001 * rng.standard_normal()})
    by_arm = {r["arm"]: r for r in comparison.comparison(pa.Table.from_pylist(rows, schema=schemas.EVALUATION))}
    assert by_arm["base"]["low"] < by_arm["base"]["mean"] < by_arm["base"]["high"]
    assert by_arm["base"]["difference_low"] is None
    assert by_arm["motive"]["difference_high"] < -0.09, "pairing was lost"
    assert by_arm["random"]["difference_low"] > 0.005


def _rows(arm: str, values: dict[str, float], metric: str = "masked_loss") -> list[dict[str, Any]]:
    fields = {"arm": arm, "uri": "", "seed": 0, "metric": metric, "version": "v"}
    return [{**fields, "clip_id": clip, "value": value} for clip, value in values.items()]


def test_arms_are_compared_on_what_all_of_them_were_evaluated_on() -> None:
    rows = _rows("base", {"a": 1.0, "b": 1.0, "easy": 0.0}) + _rows("random", {"a": 1.0, "b": 1.0})
    rows += _rows("motive", {"a": 5.0})
    table = pa.Table.from_pylist(rows, schema=schemas.EVALUATION)
    shared = contests.shared(table, ["base", "random"])
    assert {(r["arm"], r["clip_id"]) for r in shared.to_pylist()} == {(m, c) for m in ("base", "random") for c in "ab"}
    assert [r["mean"] for r in comparison.comparison(shared)] == [1, 1], "base had an easier clip"
    assert contests.shared(table, ["base", "oracle"]).num_rows == 0


def test_a_loss_that_is_not_finite_is_missing_and_nobodys_win() -> None:
    rows = _rows("base", {"a": float("nan"), "b": 2.0}) + _rows("random", {"a": 1.0, "b": 1.0})
    table = pa.Table.from_pylist(rows, schema=schemas.EVALUATION)
    (verdict,) = contests.verdicts("j", contests.losses(table, ["random", "base"]), 0.0)
    assert (verdict["clip_id"], verdict["verdict"]) == ("b", 1)
    assert {r["arm"]: r["missing"] for r in comparison.comparison(table)} == {"base": 1, "random": 0}


def test_a_difference_of_zero_keeps_its_interval() -> None:
    rows = _rows("base", {f"c{i}": float(i % 2) for i in range(8)}, "vbench_dynamic_degree")
    rows += _rows("random", {f"c{i}": float(i % 4 < 2) for i in range(8)}, "vbench_dynamic_degree")
    records = comparison.comparison(pa.Table.from_pylist(rows, schema=schemas.EVALUATION))
    base, random = records
    assert (random["difference"], random["relative"]) == (0, 0)
    assert (
        random["relative_high"]
        == pytest.approx(2 * random["difference_high"])
        == pytest.approx(-random["relative_low"])
    )
    assert random["relative_high"] > 0.5
    assert base["relative_low"] is None
    text = comparison_page.text(Compared(("random", "base"), records, [], [], {}, {}))
    assert f"{random['relative_low']:+.2%} to {random['relative_high']:+.2%}" in text


def test_videos_of_queries_that_are_gone_are_not_judged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = run_of(tmp_path, captions=3)
    tables.drop(stores.join(run.root, "queries"), ["q01"])
    evaluation = tables.read(stores.join(run.root, "evaluation"))
    assert evaluation is not None
    asked = judging._asked(run, evaluation)
    assert sorted((r["kind"], r["clip_id"]) for r in asked) == [
        *(("query", q) for q in ("q00", "q02")), *(("video", q) for q in ("q00", "q00", "q02", "q02"))
    ]  # fmt: skip
    assert "1 captions" in caplog.text


def test_captions_stay_off_the_page_where_the_configuration_says_so(tmp_path: Path) -> None:
    run = run_of(tmp_path, captions=1)
    evaluation = tables.read(stores.join(run.root, "evaluation"))
    queries = tables.read(stores.join(run.root, "queries"))
    assert evaluation is not None
    assert queries is not None
    videos = {(r["arm"], r["clip_id"], r["seed"]): r["uri"] for r in evaluation.to_pylist()}
    for shown in (True, False):
        one = run.model_copy(update={"report": run.report.model_copy(update={"captions": shown})})
        page = Path(comparison_page.write(one, Compared(("base", "motive"), [], [], [], {}, videos), lambda uri: None))
        text = unquote(page.read_text())
        assert (queries.column("caption")[0].as_py() in text) == shown


def test_columns_stay_below_their_heads_whatever_the_arms_are_called() -> None:
    scores = {arm: {(f"c{i}", 0): float(i + n) for i in range(4)} for n, arm in enumerate(["a", "b" * 30, "c" * 30])}
    tallies = contests.tallies(contests.verdicts("held_out_loss", scores, 0.0))
    results = Compared(tuple(scores), [], [], tallies, {}, {})
    head, *rows = comparison_page.text(results).splitlines()[2:]
    ends = [head.index(name) + len(name) for name in ("win", "tie", "loss")]
    assert len(rows) == 3
    assert all(row[end - 1] == "%" and row[end] == " " for row in rows for end in ends)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"evaluate__arms": ["base"]}, ["evaluate.arms", "two"]),
        ({"evaluate__arms": ["random", "random"]}, ["evaluate.arms", "two"]),
        ({"evaluate__videos": None, "evaluate__generate": 0}, ["evaluate.videos", "evaluate.generate=0"]),
        ({"evaluate__arms": ["base", "oracle"], "data__oracle": None}, ["oracle", "data.oracle"]),
        ({"evaluate__arms": ["base", "motive"], "attribution__settings": [{"mask": "none"}], "ranking__mask": "none"},
         ["motive", "mask"]),
        ({"evaluate__videos": "/nowhere"}, ["evaluate.videos", "/nowhere"]),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(
    small_run: MakeRun, tmp_path: Path, overrides: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        compare(small_run(tmp_path / "run", **overrides))
    assert all(part in str(error.value) for part in named), str(error.value)
    assert not (tmp_path / "run").exists(), "something was written"


def test_an_arm_whose_table_is_missing_stops_before_anything_is_written(small_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(MissingTableError, match=r"'weighted' needs the table clips/.*curate"):
        compare(small_run(tmp_path / "run", evaluate__arms=["base", "weighted"]))
    assert not (tmp_path / "run").exists()


def test_an_unknown_arm_is_named(small_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.arms.*'motif'"):
        small_run(tmp_path, evaluate__arms=["base", "motif"])


# --- the job ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(small_run: MakeRun, tiny_run: Any, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Twelve clips, up to their ranking."""
    root = tmp_path_factory.mktemp("compare") / "run"
    tiny: Run = tiny_run(root)
    values = {**tiny.model_dump(mode="json"), "prices": {"cpu_hour": 0.1}}
    values["evaluate"] |= {"arms": ARMS, "generate": 2, "steps": 2}
    made = config.parse(values, "test")
    for name in ("queries", "clips"):
        indexing.index(made, name)
    _featured(made)
    _held_against_queries(made)
    return made


def _held_against_queries(run: Run) -> None:
    """The flow of four clips, of which one breaks a law."""
    clips = tables.read(stores.join(run.root, "clips"), ["clip_id"])
    assert clips is not None
    row = {"group": "roll", "distance": 1.0, "law": "jerk", "named_by": "caption"}
    ids = clips.column("clip_id").to_pylist()[:4]
    rows = [{**row, "clip_id": clip_id, "quantile": 0.01 if n == 0 else 0.5} for n, clip_id in enumerate(ids)]
    tables.append(stores.join(run.root, "lawfulness"), pa.Table.from_pylist(rows, schema=schemas.LAWFULNESS), {})


def _featured(run: Run) -> None:
    """Features of every clip, made up: no arm here looks at more than how many clips have some."""
    clips = tables.read(stores.join(run.root, "clips"), ["clip_id", "version"])
    assert clips is not None
    count, dim = clips.num_rows, run.attribution.projection.dim
    ones = np.ones((count, 2), np.float32)
    vectors = map(tables.vectors, (np.ones((count, 2 * dim), np.float32), ones, ones))
    columns = [*clips.columns, *vectors, pa.array([9] * count, pa.int32()), pa.nulls(count, pa.string())]
    table, settings = pa.table(columns, schema=schemas.features_schema(2, dim)), run.attribution.settings
    folder, records = stores.join(run.root, "features", "clips"), [setting.model_dump() for setting in settings]
    tables.append(folder, table, fingerprints.features(run), settings=records)


@pytest.fixture(scope="module")
def compared(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A comparison that stopped after its first arm, and the same command again."""
    patch = pytest.MonkeyPatch()

    def stopped(one: Run) -> None:
        if one.finetune.arm == "all":
            raise KeyboardInterrupt
        arm_trained(one)

    arm_trained = finetuning.finetune
    with patch.context() as change:
        change.setattr(finetuning, "finetune", stopped)
        with pytest.raises(KeyboardInterrupt):
            compare(run)
    first = Path(run.root, "finetuned", "random", "done.json").stat().st_mtime_ns
    compare(run)
    assert Path(run.root, "finetuned", "random", "done.json").stat().st_mtime_ns == first, "it was trained again"
    return run


def test_arms_are_trained_evaluated_and_judged(compared: Run) -> None:
    folder = Path(compared.root, "comparison")
    document = json.loads((folder / "comparison.json").read_text())
    pairs = {(t["judge"], t["ours"], t["theirs"]): t for t in document["contests"]}
    assert {key[0] for key in pairs} == {"generated_video", "held_out_loss"}
    assert {key[1:] for key in pairs} == {("random", "base"), ("all", "base"), ("random", "all")}
    assert {t["pairs"] for key, t in pairs.items() if key[0] == "generated_video"} == {2}
    assert unregistered(compared.root) == []
    verdicts, described = (tables.read(str(folder / name)) for name in ("verdicts", "motion"))
    assert verdicts is not None
    assert described is not None
    assert verdicts.num_rows == sum(t["pairs"] for t in document["contests"])
    assert described.num_rows == 4 + 2 * len(ARMS)
    page = (folder / "index.html").read_text()
    assert page.count("data:image/webp") == 2 * len(ARMS)
    assert "../generated/random/" in page
    assert document["lawfulness"]["all"] == {"clips": 12, "measured": 4, "unlawful": 1, "share": 0.25}
    assert list(document["lawfulness"]) == ["random", "all"], "the base was trained on no clips"
    assert "How lawful the clips of each arm are" in page


def test_again_it_finds_everything_there(compared: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path(compared.root).rglob("*.safetensors")}
    compare(compared)
    printed = capsys.readouterr().out
    assert "every arm is trained and evaluated already" in printed
    assert "held-out clips: of two arms" in printed
    assert "arm all: 12 clips; 1 of 4 whose flow is known (25%) have a flaw or break a law" in printed
    assert {p: p.stat().st_mtime_ns for p in Path(compared.root).rglob("*.safetensors")} == before


def test_twins_that_are_asked_for_later_add_their_margins_and_leave_the_rest(
    compared: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stores.join(compared.root, "evaluation")
    before = tables.read(folder)
    assert before is not None
    twins = ("backwards", "frozen")
    compare(compared.model_copy(update={"evaluate": compared.evaluate.model_copy(update={"twins": twins})}))
    printed = capsys.readouterr().out
    after = tables.read(folder)
    assert after is not None
    new = [row for row in after.to_pylist() if row not in before.to_pylist()]
    assert after.num_rows == before.num_rows + len(new), "a row was measured again"
    held_out = {row["clip_id"] for row in before.to_pylist() if row["metric"] == "plain_loss"}
    assert {(r["arm"], r["clip_id"], r["metric"]) for r in new} == {
        (arm, clip, comparison.MARGINS[twin]) for arm in ARMS for clip in held_out for twin in twins
    }
    assert "0 videos" in printed
    assert "preference_accuracy_backwards" in printed
    document = json.loads((Path(compared.root) / "comparison" / "comparison.json").read_text())
    metrics = [*dict.fromkeys(record["metric"] for record in document["metrics"])]
    pairs = [m[twin] for twin in twins for m in (comparison.ACCURACIES, comparison.MARGINS)]
    assert metrics[2:6] == pairs
    page = (Path(compared.root) / "comparison" / "index.html").read_text()
    assert "preference_accuracy_frozen" in page
    assert "higher is better" in page
    compare(compared.model_copy(update={"evaluate": compared.evaluate.model_copy(update={"twins": twins})}))
    assert "every arm is trained and evaluated already" in capsys.readouterr().out
    assert tables.read(folder) == after


def test_the_cost_is_told_before_anything_is_trained(
    compared: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(run: Run, named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "finetune_arms", refused)
    evaluate = compared.evaluate.model_copy(update={"arms": (*ARMS, "oracle")})
    with pytest.raises(KeyboardInterrupt):
        compare(compared.model_copy(update={"evaluate": evaluate}))
    printed = capsys.readouterr().out
    assert "oracle to train, 4 losses, 2 videos" in printed
    assert "finetune, 1 arm " in printed
    assert "USD" in printed


def test_videos_that_are_gone_or_of_another_length_are_named(compared: Run) -> None:
    table = tables.read(stores.join(compared.root, "evaluation"))
    assert table is not None
    uri = next(r["uri"] for r in table.to_pylist() if r["arm"] == "random" and r["metric"] == "temporal_flickering")
    content = Path(uri).read_bytes()
    before = tables.read(stores.join(compared.root, "evaluation"))
    Path(uri).unlink()
    with pytest.raises(MissingTableError, match=r"not there.*Put back"):
        compare(compared)
    stores.remove(stores.join(compared.root, "comparison", "motion"))
    write_mp4(uri, np.zeros((8, 32, 32, 3), np.uint8), compared.data.fps)
    with pytest.raises(MissingTableError, match=r"too_short.*evaluation") as error:
        compare(compared)
    assert Path(uri).name in str(error.value)
    Path(uri).write_bytes(content)
    compare(compared)
    assert tables.read(stores.join(compared.root, "evaluation")) == before


@pytest.mark.parametrize(("frames", "code"), [(8, "too_short"), (9, None), (10, "too_long")])
def test_a_generated_video_has_the_frames_that_were_asked_for(
    small_run: MakeRun, tmp_path: Path, frames: int, code: str | None
) -> None:
    run, path = small_run(tmp_path), str(tmp_path / "video.mp4")
    write_mp4(path, np.zeros((frames, 32, 32, 3), np.uint8), run.data.fps)
    problem = DescriptionWorker(run).describe({"kind": VIDEO, "uri": path, "start_frame": 0})["problem"]
    assert code == (problem and problem.split(":")[0])


@pytest.mark.parametrize("code", ["crashed", "timeout", "read", "decode"])
def test_a_generated_video_whose_end_could_not_be_seen_has_that_problem(
    small_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    run, path = small_run(tmp_path), str(tmp_path / "video.mp4")
    write_mp4(path, np.zeros((run.data.frames, 32, 32, 3), np.uint8), run.data.fps)
    worker = DescriptionWorker(run)
    decode = worker.decoder.frames

    def failing_beyond_the_last(uri: str, start_frame: int, count: int, *geometry: Any) -> Any:
        if count > run.data.frames:
            raise ClipError(code, "it stood still")
        return decode(uri, start_frame, count, *geometry)

    monkeypatch.setattr(worker.decoder, "frames", failing_beyond_the_last)
    row = worker.describe({"kind": VIDEO, "uri": path, "start_frame": 0})
    assert (row["description"], row["problem"]) == (None, f"{code}: it stood still")


def test_an_arm_without_its_table_stops_before_the_first_is_trained(small_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(MissingTableError, match="curate"):
        arms.training_set(small_run(tmp_path, finetune__arm="motive"))
