"""Pools out of measurements and nodes: what holds on every cluster, and what is known by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cluster.nodes import GB, Nodes
from pipeline.config.operations import Pool
from pipeline.errors import ConfigError
from pipeline.operations import pools
from pipeline.operations.pools import Chosen, Measure, choose

LAPTOP = [Nodes(2, 0, 1, 6.0)]
WORKSTATION = [Nodes(16, 1, 1, 60.0)]
EIGHT_BY_EIGHT = [Nodes(0, 0, 1, 8.0), Nodes(96, 8, 8, 900.0)]
MIXED = [Nodes(8, 1, 2, 50.0), Nodes(32, 0, 4, 100.0), Nodes(64, 4, 1, 200.0)]
CLUSTERS = {"laptop": LAPTOP, "workstation": WORKSTATION, "8x8": EIGHT_BY_EIGHT, "mixed": MIXED}

ON_CPU = Measure(
    rows=20, compute=0.3, decode=0.02, load=8.0, memory=int(1.2 * GB), decoder_memory=int(0.1 * GB), output=8192
)
ON_GPU = Measure(
    rows=20,
    compute=3.6,
    decode=4.0,
    gpu_share=0.97,
    load=60.0,
    memory=int(12 * GB),
    decoder_memory=int(0.5 * GB),
    gpu_memory=int(30 * GB),
    gpu_total=int(80 * GB),
)


def held_up_by(chosen: Chosen) -> str:
    return chosen.bottleneck.split(":")[0]


def test_a_laptop_has_an_actor_a_core() -> None:
    chosen = choose("extract_features", ON_CPU, LAPTOP, 10_000)
    assert (chosen.pool.actors, chosen.pool.cpus, chosen.pool.gpus) == (2, 1, 0)
    assert chosen.rate == pytest.approx(2 / 0.32), "both cores compute and decode all the time"
    assert held_up_by(chosen) == "the cores"


@pytest.mark.parametrize(("name", "gpus"), [("workstation", 1), ("8x8", 64), ("mixed", 6)])
def test_every_gpu_has_an_actor_and_is_what_holds_it_up(name: str, gpus: int) -> None:
    chosen = choose("extract_features", ON_GPU, CLUSTERS[name], 1_000_000)
    assert chosen.pool.actors * chosen.pool.gpus == gpus
    assert held_up_by(chosen) == "the GPUs"
    assert (chosen.pool.cpus - 1) * 3.6 >= 4.0, "its decoders keep up"
    assert chosen.rate == pytest.approx(gpus / 3.6)


def test_decoders_that_cannot_keep_up_are_named() -> None:
    chosen = choose("extract_features", ON_GPU.model_copy(update={"decode": 40.0}), [Nodes(4, 1, 1, 60.0)], 10_000)
    assert chosen.pool.cpus == 4
    assert held_up_by(chosen) == "decoding"
    assert chosen.rate < 3 / 40


def test_nodes_without_a_gpu_take_no_actor_of_one_and_all_of_the_others() -> None:
    on_gpus = choose("extract_features", ON_GPU, MIXED, 1_000_000)
    assert Nodes(32, 0, 4, 100.0).room(on_gpus.pool) == 0
    indexing = choose("index_clips", Measure(rows=20, compute=0.2, memory=int(0.3 * GB)), MIXED, 1_000_000)
    assert indexing.pool.actors == 2 * 8 + 4 * 32 + 64


@pytest.mark.parametrize(("share", "actors"), [(0.95, 1), (0.5, 2), (0.2, 4)])
def test_what_leaves_a_gpu_idle_shares_it_as_far_as_its_memory_goes(share: float, actors: int) -> None:
    measure = ON_GPU.model_copy(update={"gpu_share": share, "gpu_memory": int(16 * GB), "decode": 0.1})
    chosen = choose("extract_features", measure, [Nodes(32, 1, 1, 200.0)], 100_000)
    assert chosen.pool.actors == actors  # 4 x 16 GB with their margin are 77 of 80
    unknown = choose(
        "extract_features", measure.model_copy(update={"gpu_share": None}), [Nodes(32, 1, 1, 200)], 100_000
    )
    assert unknown.pool.actors == 1


def test_actors_are_spread_by_the_memory_that_they_take() -> None:
    measure = ON_CPU.model_copy(update={"memory": int(10 * GB)})
    nodes = [Nodes(64, 0, 1, 16.0), Nodes(8, 0, 1, 64.0)]
    chosen = choose("extract_features", measure, nodes, 100_000)
    assert [n.room(chosen.pool) for n in nodes] == [1, 5]
    assert held_up_by(chosen) == "memory"


def test_a_generation_is_shared_as_far_as_memory_goes() -> None:
    dense = ON_CPU.model_copy(
        update={"compute": 2.0, "generation": 1.5, "gradients": 1, "gradient_bytes": int(0.1 * GB)}
    )
    roomy, tight = ([Nodes(2, 0, 1, memory)] for memory in (64.0, 3.6))
    chosen = choose("extract_features", dense, roomy, 100_000)
    assert chosen.hold >= 16
    assert chosen.pool.batch % chosen.hold == 0, "a batch is whole generations"
    less = choose("extract_features", dense, tight, 100_000)
    assert 1 < less.hold < chosen.hold
    assert choose("extract_features", ON_CPU, roomy, 100_000).hold == 1, "there is nothing to share"


def test_few_clips_do_not_load_many_models() -> None:
    chosen = choose("extract_features", ON_CPU, [Nodes(64, 0, 1, 500.0)], 60)
    assert chosen.pool.actors == 2  # 18 seconds of work, 8 to load
    assert held_up_by(chosen) == "loading"


def test_batches_hide_what_they_cost_and_end_together() -> None:
    quick = ON_CPU.model_copy(update={"compute": 0.01, "decode": 0.005})
    assert choose("extract_features", quick, LAPTOP, 1_000_000).pool.batch > 100
    few = choose("extract_features", quick.model_copy(update={"load": 0.0}), LAPTOP, 80)
    assert few.pool.batch <= 80 / 2 / pools.TURNS
    slow = ON_CPU.model_copy(update={"compute": 90.0})
    assert choose("extract_features", slow, LAPTOP, 1_000).pool.batch == 1


def test_more_than_any_node_has_is_one_paragraph() -> None:
    with pytest.raises(ConfigError, match=r"extract_features: auto.*40\.1 GB.*2 x \(8 CPUs, 0 GPUs, 16\.0 GB\)") as e:
        choose("extract_features", ON_CPU.model_copy(update={"memory": int(40 * GB)}), [Nodes(8, 0, 2, 16.0)], 100)
    assert "\n" not in str(e.value)
    with pytest.raises(ConfigError, match="and a GPU"):
        choose("extract_features", ON_GPU, LAPTOP, 100)


def test_a_choice_stands_while_the_nodes_do() -> None:
    chosen = pools.choose_all({"extract_features": ON_CPU}, LAPTOP, {"extract_features": 1000})
    assert pools.stands(chosen, LAPTOP, LAPTOP)
    assert pools.stands(chosen, LAPTOP, [Nodes(2, 0, 1, 5.9)]), "memory differs a little at every start"
    assert not pools.stands(chosen, LAPTOP, [Nodes(2, 0, 1, 2.0)])
    assert not pools.stands(chosen, LAPTOP, [Nodes(4, 0, 1, 6.0)])
    assert not pools.stands(chosen, LAPTOP, [Nodes(2, 0, 2, 6.0)])


NODES = st.builds(
    Nodes,
    cpus=st.integers(0, 128).map(float),
    gpus=st.sampled_from([0.0, 1.0, 4.0, 8.0]),
    count=st.integers(1, 64),
    memory=st.floats(1, 2000) | st.just(math.inf),
)


@st.composite
def measures(draw: st.DrawFn) -> Measure:
    compute = draw(st.floats(0.001, 100))
    values: dict[str, Any] = {
        "rows": 20,
        "compute": compute,
        "decode": draw(st.floats(0, 50)),
        "load": draw(st.floats(0, 300)),
        "memory": draw(st.integers(1 << 20, 1 << 38)),
        "decoder_memory": draw(st.integers(1 << 20, 1 << 32)),
    }
    if draw(st.booleans()):
        gradients = draw(st.integers(1, 4))
        values |= {"gradients": gradients, "generation": draw(st.floats(0, 0.9)) * compute / gradients}
        values["gradient_bytes"] = draw(st.integers(1 << 10, 1 << 34))
    if draw(st.booleans()):
        values |= {"gpu_total": draw(st.integers(1 << 33, 1 << 38)), "gpu_share": draw(st.none() | st.floats(0.01, 1))}
        values["gpu_memory"] = draw(st.integers(1, values["gpu_total"]))
    return Measure(**values)


@settings(max_examples=60)
@given(measures(), st.lists(NODES, min_size=1, max_size=4), st.floats(1, 1e8))
def test_on_every_cluster_what_is_chosen_has_room(measure: Measure, nodes: list[Nodes], rows: float) -> None:
    try:
        chosen = choose("extract_features", measure, nodes, rows)
    except ConfigError:
        needed = (measure.memory + measure.decoder_memory) / GB + 0.1  # it is asked for in tenths
        one = Pool(cpus=1, gpus=1.0 if measure.gpu_total else 0.0, memory=needed)
        assert sum(n.room(one) for n in nodes) == 0
        return
    pool = chosen.pool
    assert 1 <= pool.actors <= sum(n.room(pool) for n in nodes)
    assert pool.actors <= rows
    assert chosen.rate > 0
    assert 0 < chosen.busy <= 1 + 1e-9
    assert 1 <= chosen.hold <= 64
    if measure.gpu_total:
        gradient_memory = 0 if chosen.hold == 1 else chosen.hold * measure.gradient_bytes
        assert round(1 / pool.gpus) * (measure.gpu_memory + gradient_memory) <= measure.gpu_total
    assert choose("extract_features", measure, nodes, rows) == chosen, "the same again"
    assert choose("extract_features", measure, nodes[::-1], rows).rate == pytest.approx(chosen.rate)


@given(measures(), st.lists(NODES, min_size=1, max_size=3))
def test_more_nodes_are_never_slower(measure: Measure, nodes: list[Nodes]) -> None:
    rows = 1e12  # of fewer, further actors may load longer than they work
    try:
        rate = choose("extract_features", measure, nodes, rows).rate
    except ConfigError:
        return
    twice = [Nodes(n.cpus, n.gpus, 2 * n.count, n.memory) for n in nodes]
    assert choose("extract_features", measure, twice, rows).rate >= rate * 1.9
