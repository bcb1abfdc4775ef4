"""What counts as failure, written down before any result; whether it came; and the sentence that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.benchmarks.verdicts import Verdict

CONFIDENCE = 0.9
PLAIN_AT_MOST = 0.01
CLIPS, PEOPLE, ACTIONS = 90, 8, 4  # fewer show nothing

CRITERIA: Mapping[str, str] = {
    "random": f"the best rule's tenth is not better than random on the target's masked loss at {CONFIDENCE:.0%} over "
    "actions",
    "controls": "the best rule's target-specific LDS on skewed subsets is not above that of the untrained model in the "
    "same form, or not above that of caption and person together",
    "specific": f"with the best rule's tenth the other actions' masked loss falls as much as the target's, or the "
    f"target's plain loss rises by more than {PLAIN_AT_MOST:.0%}",
    "search": "the best rule's tenth lowers the target's masked loss less than caption search does where clips have "
    "captions, or less than the nearest flow where they have none",
    "halves": "matched halves by the best rule differ no more than matched halves by the clips' own loss, whichever of "
    "the latter is better",
}
ADDS = "Influence adds something on these data: no criterion of failure came true."
NOTHING = "Use flow and captions; influence adds nothing on these data."
FEW = (
    f"Nothing can be concluded from so few: {{clips}} clips, {{people}} persons, {{actions}} actions, where {CLIPS} "
    f"clips of {PEOPLE} persons and {ACTIONS} actions are the fewest. The run shows that every step works on these "
    "videos, and no more."
)


def verdicts(tables: Mapping[str, Sequence[Mapping[str, Any]]], captioned: bool, best: str) -> list[Verdict]:
    """What the tables of the studies say of every criterion; `best` names the rule."""
    arms = {row["arm"]: row for row in tables["first tenth"]}
    lds = {row["score"]: row for row in tables["lds"] if row["design"] == "skewed"}
    halves = {row["score"]: row for row in tables["halves"]}
    tenth = arms[best]
    search = "caption" if captioned else "nearest flow"
    other = arms[search]
    controls = {name: lds[name]["specific"] for name in ("untrained, as best", "ridge: caption and person")}
    return [
        Verdict(
            "random",
            not tenth["over_random_high"] < 0,
            f"{tenth['over_random']:+.4f} [{tenth['over_random_low']:+.4f}, {tenth['over_random_high']:+.4f}]",
        ),
        Verdict(
            "controls",
            any(not lds[best]["specific"] > value for value in controls.values()),
            f"{lds[best]['specific']:+.2f} against " + ", ".join(f"{n} {v:+.2f}" for n, v in controls.items()),
        ),
        Verdict(
            "specific",
            tenth["masked_others"] <= tenth["masked_target"] or tenth["plain_target"] > PLAIN_AT_MOST,
            f"target {tenth['masked_target']:+.4f}, others {tenth['masked_others']:+.4f}, plain "
            f"{tenth['plain_target']:+.4f}",
        ),
        Verdict(
            "search",
            tenth["masked_target"] > other["masked_target"],
            f"{tenth['masked_target']:+.4f} against {search} {other['masked_target']:+.4f}",
        ),
        _halves(halves, best),
    ]


def _halves(halves: Mapping[str, Mapping[str, Any]], best: str) -> Verdict:
    if best not in halves or "own loss" not in halves:
        return Verdict("halves", None, "no cell of (action, person) has two clips")
    ours, own = halves[best]["difference"], abs(halves["own loss"]["difference"])
    return Verdict("halves", not ours > own, f"{ours:+.4f} against own loss {own:+.4f}")


def sentence(all_verdicts: Sequence[Verdict], clips: int, people: int, actions: int) -> str:
    """The sentence that follows from the verdicts of every base; of too few clips none does."""
    if clips < CLIPS or people < PEOPLE or actions < ACTIONS:
        return FEW.format(clips=clips, people=people, actions=actions)
    return NOTHING if any(verdict.failed is not False for verdict in all_verdicts) else ADDS
