"""What people asked for in the workbench, worked off through Ray: a prompt's video, a part of a clip, an exact like."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from jobs.attribute_requests import attribute_requests
from pipeline import config, tables
from pipeline.config import Run
from pipeline.motion import decode_mask
from pipeline.stages import attribution, indexing, run_record
from pipeline.stages.ranking import rank_clips
from pipeline.tables import schemas
from pipeline.video.decoder import Decoder
from pipeline.workbench import index, made_queries, requests
from pipeline.workbench.made_queries import Made, Prompted
from pipeline.workbench.people import Like, People
from pipeline.workbench.scores import Scores
from pipeline.workbench.views import Spec
from tests.support.registered import unregistered

pytestmark = pytest.mark.whole

MakeRun = Callable[..., Run]


def rows(run: Run, name: str) -> dict[str, dict[str, Any]]:
    table = tables.read(f"{run.root}/{name}")
    assert table is not None, f"there is no table {name}"
    return {row["clip_id"]: row for row in table.to_pylist()}


def features(run: Run, name: str) -> dict[str, bytes]:
    return {i: np.asarray(row["feature"], np.float32).tobytes() for i, row in rows(run, f"features/{name}").items()}


@pytest.fixture(scope="module")
def ranked(
    small_run: MakeRun,
    clips_of_world: Callable[[Iterable[int]], str],
    cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """A run of a few clips, ranked."""
    folder = tmp_path_factory.mktemp("asked")
    pool = {"actors": 1, "cpus": 1, "batch": 4}
    run = small_run(
        folder / "run", data__videos=clips_of_world(range(8)), resources__extract_features=pool, evaluate__steps=2
    )
    for name in ("queries", "clips"):
        indexing.index(run, name)
        attribution.attribute(run, name)
    rank_clips(run)
    run_record.record(run)
    return run


def test_what_people_ask_for_is_done_once_and_all_else_keeps_every_bit(ranked: Run) -> None:
    before = {name: features(ranked, name) for name in ("queries", "clips")}
    opened = index.read(ranked)
    people = People(opened, True)
    liked = max(opened.ids.to_pylist())
    people.like(Like(batch="like-of-ann", by="ann", clip=liked, sign=1, exact=True))
    made_queries.of_prompt(ranked.root, Prompted(batch="by-a-prompt", by="ann", group="hop", prompt="a ball hops"))
    clip = next(row for row in rows(ranked, "motion/clips").values() if row["error"] is None)
    whole = decode_mask(clip["mask"], clip["mask_shape"])
    half = whole.shape[-1] // 2
    is_left = float(whole[..., :half].sum()) > float(whole[..., half:].sum())  # where most of it moves
    rectangle = (0, 0, 0.5, 1) if is_left else (0.5, 0, 1, 1)
    part = {"batch": "of-a-part", "by": "ann", "group": "roll", "clip": clip["clip_id"], "rectangle": rectangle}
    with Decoder() as decoder:
        made_queries.of_clip(ranked, clip, Made.model_validate(part), decoder)
    attribute_requests(ranked)

    assert features(ranked, "clips") == before["clips"]
    after = features(ranked, "queries")
    assert {i: after[i] for i in before["queries"]} == before["queries"]
    made = {"made-by-a-prompt", "made-of-a-part"}
    assert set(after) - set(before["queries"]) == made
    queries = rows(ranked, "motion/queries")
    assert queries["made-of-a-part"]["mask_box"] == ("0,0,0.5,1" if is_left else "0.5,0,1,1")
    mask = decode_mask(queries["made-of-a-part"]["mask"], queries["made-of-a-part"]["mask_shape"])
    assert float((mask[..., half:] if is_left else mask[..., :half]).abs().sum()) == 0.0
    assert float(mask.sum()) > 0.0
    assert queries["made-by-a-prompt"]["caption"] == "a ball hops"

    now = index.read(config.load(f"{ranked.root}/config.yaml"))
    assert made - set(now.query_ids) <= {"made-by-a-prompt"}, "a video of two steps may not move"
    assert "made-of-a-part" in now.query_ids
    assert now.liked_ids == [liked]
    scores = Scores(now, people)
    assert scores.is_exact({liked: 1})
    exact = scores.liked(Spec(sort="like", like={liked: 1}))
    assert int(np.nanargmax(exact)) == int(now.places([liked])[0]), "nothing is liker a clip than it is itself"
    assert unregistered(ranked.root) == []
    assert not requests.pending(ranked.root)


def test_a_like_is_attributed_as_a_query_and_goes_when_it_is_taken_back(ranked: Run) -> None:
    opened = index.read(ranked)
    people = People(opened, True)
    (liked,) = requests.exact_likes(people.likes.rows)
    clip, as_query = rows(ranked, "features/clips")[liked], rows(ranked, "features/liked")[liked]
    settings = tables.metadata(f"{ranked.root}/features/liked")["settings"]
    assert settings == tables.metadata(f"{ranked.root}/features/queries")["settings"]
    if settings == tables.metadata(f"{ranked.root}/features/clips")["settings"] and ranked.queries.looks == 1:
        assert as_query["feature"] == clip["feature"]
    people.like(Like(batch="like-taken-back", by="ann", clip=liked, sign=0))
    other = min(opened.ids.to_pylist())
    people.like(Like(batch="like-of-ben", by="ben", clip=other, sign=-1, exact=True))
    attribute_requests(ranked)
    assert set(rows(ranked, "features/liked")) == {other}
    assert index.read(ranked).liked_ids == [other]
    shutil.rmtree(f"{ranked.root}/influence_liked")  # as a job leaves it that is killed before it ranks
    attribute_requests(ranked)
    assert index.read(ranked).liked_ids == [other]
    people.like(Like(batch="like-of-ben-2", by="ben", clip=other, sign=0))
    people.like(Like(batch="like-of-ben-3", by="ben", clip=liked, sign=1, exact=True))
    attribute_requests(ranked)
    assert set(rows(ranked, "features/liked")) == {liked}
    assert tables.read(f"{ranked.root}/liked").schema == schemas.QUERIES
