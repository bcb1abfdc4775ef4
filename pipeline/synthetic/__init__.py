"""A world of ten motions whose optical flow is known exactly, for the demo, the benchmarks and the tests.

`world` draws scenes, and `shifted` those of another world. `trajectories` moves their bodies by law or as a cartoon
that breaks it, and `spoiled` makes pairs of one right and one wrong video. No other package of the library imports
this one.
"""
