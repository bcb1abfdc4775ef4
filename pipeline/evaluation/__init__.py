"""Fine-tuned models against the base model and against one another.

`held_out` takes losses on clips that no arm saw, `generation` makes videos from captions, `metrics` measures their
motion as VBench does. `judge` and `movement` decide which of two videos moves more like the queries, `comparison`
pairs every metric clip by clip, and `contests` counts wins, ties and losses.
"""
