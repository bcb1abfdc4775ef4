"""What the results of a configuration do not mean, and what tells whether they mean anything, as sentences for the log
and the page.

A run that goes through with a toy model prints the same figures as one with a real model. These sentences say so.
"""

from __future__ import annotations

from pipeline.config.run import DEMO_VIDEOS, PACKAGE, Run

CONTROLS = ("caption", "random")  # arms that a selection must be better than
TOY_SIDE = 64  # pixels: an object that fills a tenth of a side below this is six pixels wide


def caveats(run: Run) -> list[str]:
    """One sentence or two for each of them; none for the demo on its own synthetic videos."""
    sentences = []
    if run.queries.source == "sample":
        sentences.append(
            f"The queries are provisional: queries.sample={run.queries.sample} draws them from the clips of "
            "data.videos, so the ranking favours what the corpus shows most, and each of them is its own neighbour. "
            "Give videos of the motions that you look for in queries.videos."
        )
    if run.data.videos == DEMO_VIDEOS["data.videos"]:
        return sentences
    if run.model.id == str(PACKAGE / "weights/wan-demo"):
        sentences.append(
            "The model is a toy: model.id is the demo's, which has seen nothing but synthetic shapes. The run shows "
            "that everything works on these videos. Which clips are selected means nothing for a real model."
        )
    if run.motion.weights == str(PACKAGE / "weights/raft_small_world.safetensors"):
        sentences.append(
            "The optical flow is a toy: motion.weights are the demo's, trained on synthetic shapes. "
            "motion.weights=default takes torchvision's, which are downloaded once."
        )
    _, _, height, width = run.geometry
    if min(height, width) < TOY_SIDE:
        sentences.append(
            f"The geometry is a toy: at {height} x {width} pixels most motion of real videos cannot be seen. Raise "
            "data.height and data.width to what the model was trained at."
        )
    return sentences


def advice(run: Run) -> str:
    """Which arms tell whether a selection is worth something, and which of them the run does not evaluate."""
    sentence = (
        "Hold the selection against the arms caption and random before you trust it: in small synthetic worlds "
        "influence added nothing that captions do not say (docs/results.md)."
    )
    missing = [arm for arm in CONTROLS if arm not in run.evaluate.arms]
    return f"{sentence} evaluate.arms has no {' and no '.join(missing)}." if missing else sentence
