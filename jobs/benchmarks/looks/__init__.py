"""Does a ranking follow motion, or looks? `python -m jobs.benchmarks.looks` says.

gradients   the projected gradients of a corpus and of its queries in all looks, kept on disk
unlearning  what a motion's queries, unlearnt and learnt, do to the clips' losses, kept on disk
rules       what is compared: rankings out of those gradients, and controls that need no model
lift        the yardsticks: shares and areas by motion and by colour, over chance
"""
