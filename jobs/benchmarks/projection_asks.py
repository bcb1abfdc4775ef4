"""What was asked of the projection on a CPU, beside what was measured. Where a figure is missing, so is the verdict."""

from __future__ import annotations

from typing import Any

from jobs.benchmarks.projectors import ENTRIES, KINDS, PEERS

Row = dict[str, Any]
_MEMORY = 256 * 2**20  # bytes above the values, at the largest size
_ERROR = 0.05  # relative to a true Gaussian's


def asks(speed: list[Row], cosines: list[Row], short: int, long: int, longest: int) -> list[dict[str, str]]:
    """Each ask with its figure and "yes", "NO" or "not measured"."""

    def found(name: str, coordinates: int, vectors: int = 1, threads: int = 2) -> Row | None:
        key = {"name": name, "coordinates": coordinates, "vectors": vectors, "threads": threads}
        return next((row for row in speed if "not_run" not in row and key.items() <= row.items()), None)

    one, eight = found("gaussian", short), found("gaussian", short, 8)
    judged = [
        _ratio(f"gaussian >= 15x the reference at {short:,}", one, 15),
        _eight(one, eight, short),
        _floor(found(ENTRIES, short, 1, 1), *(found("gaussian", short, vectors, 1) for vectors in (1, 8))),
        *(_peer(peer.name, one, found(peer.name, short), short) for peer in PEERS if peer.dense and not peer.kept),
        _ratio(f"sketched_gaussian >= 300x the reference at {long:,}", found("sketched_gaussian", long), 300),
    ]
    judged += [_error(row) for row in cosines if row["name"] in KINDS]
    return judged + [_memory(kind, found(kind, longest), longest) for kind in KINDS]


def _judged(ask: str, figure: str, met: bool | None) -> dict[str, str]:
    return {"ask": ask, "figure": figure, "met": "not measured" if met is None else "yes" if met else "NO"}


def _ratio(ask: str, row: Row | None, least: float) -> dict[str, str]:
    if row is None or "ratio" not in row:
        return _judged(ask, "", None)
    return _judged(ask, f"{row['ratio']:.1f}x", row["ratio"] >= least)


def _eight(one: Row | None, eight: Row | None, short: int) -> dict[str, str]:
    ask = f"gaussian, 8 vectors <= 1.7x the time of one at {short:,}"
    if one is None or eight is None:
        return _judged(ask, "", None)
    times = eight["seconds"] / one["seconds"]
    return _judged(ask, f"{times:.2f}x", times <= 1.7)


def _floor(entries: Row | None, *gaussian: Row | None) -> dict[str, str]:
    """How near to the floor: the share of the time of 1 and of 8 vectors that P's entries alone take, one thread."""
    ask = "gaussian, one thread: near the time of P's entries alone"
    if entries is None:
        return _judged(ask, "", None)
    shares = [f"{entries['seconds'] / row['seconds']:.0%}" for row in gaussian if row]
    return _judged(ask, f"{' and '.join(shares)} of the time of 1 and 8 vectors", None)


def _peer(name: str, ours: Row | None, theirs: Row | None, short: int) -> dict[str, str]:
    """Both as ratios to the reference beside them, so that a slow minute does not count for either."""
    ask = f"gaussian >= 10x {name} at {short:,}, with less memory"
    if ours is None or theirs is None or "ratio" not in theirs:
        return _judged(ask, "", None)
    ahead, less = ours["ratio"] / theirs["ratio"], ours["extra_bytes"] < theirs["extra_bytes"]
    figure = f"{ahead:.1f}x, {ours['extra_bytes'] / 2**20:.0f} MiB for {theirs['extra_bytes'] / 2**20:.0f} MiB"
    return _judged(ask, figure, ahead >= 10 and less)


def _error(row: Row) -> dict[str, str]:
    """Within 5 % for both sets of vectors; without a verdict where the noise of the comparison is over 2.5 %."""
    ask = f"{row['name']}: RMS error of cosines within 5 % of a true Gaussian's"
    if "not_run" in row:
        return _judged(ask, "", None)
    off = {name: row[name]["over_gaussian"] - 1 for name in ("orthogonal", "correlated")}
    noise = {name: row[name]["over_gaussian_error"] for name in off}
    figure = ", ".join(f"{name} {off[name]:+.1%} +- {noise[name]:.1%}" for name in off)
    within = all(abs(each) <= _ERROR for each in off.values())
    return _judged(ask, figure, within if max(noise.values()) <= _ERROR / 2 else None)


def _memory(kind: str, row: Row | None, longest: int) -> dict[str, str]:
    ask = f"{kind}: peak extra memory < 256 MiB at {longest:,}"
    if row is None:
        return _judged(ask, "", None)
    return _judged(ask, f"{row['extra_bytes'] / 2**20:.1f} MiB, {row['seconds']:.1f} s", row["extra_bytes"] < _MEMORY)
