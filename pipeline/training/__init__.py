"""Fine-tuning: which clips an arm takes, and the loop that trains on them.

`arms` says what each arm trains on, `training_set` encodes clips once and draws them by seed, step and position,
`loop` is the loop itself with the loss of `models/loss.py` unmasked. `sharding` splits the parameters over workers,
and `checkpoints` stores what a training needs to go on.
"""
