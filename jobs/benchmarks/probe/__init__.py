"""A linear probe on the states of a video model's blocks: do they tell lawful motion from spoiled? `states` has the
states of a corpus, `ridge` the probe and what is left out of its lesson, `areas` how well it does."""
