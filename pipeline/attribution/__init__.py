"""Gradients to features.

A clip's loss is taken under its motion mask, and the gradient of that loss is projected to a few hundred numbers
while backward produces it. `gradients` is the mathematics, `workers` the bodies of the actors, `fingerprints` what
makes the rows of two machines comparable, `canary` the clip on which every actor shows it, and `decomposition` splits
a feature over latent frames and layers.
"""
