"""The only package that imports Ray.

`streaming` sends rows through a pool of actors, `training` runs the fine-tuning loop under Ray Train. `connection`
joins or starts a cluster, `resources` compares what stages ask for with what nodes have, and `journal`, `attempts`
and `watchdog` know which actor works on which clips and when a process has died over them.
"""
