"""What surrounds a run: nights, cost, purging, and who is told.

`nights`, `promotion`, `in_use` and `reattribution` belong to the nightly job. `pilot` times a few clips through every
stage and `costs` multiplies them out. `purge` removes clips from every table and page; `tracking` and `webhook`
report to other systems.
"""
