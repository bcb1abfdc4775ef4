"""Does it pick the right clips? ``python -m jobs.benchmarks.quality`` answers by fine-tuning on what it picked.

problem          the synthetic world's clips, queries and held-out clips, encoded once
retraining       a short fine-tuning on some of the clips, and the held-out losses after it: the truth
kernels          inner products of whole gradients by part of the model, for every setting: what influence is made of
influences       every way to score a clip for a motion: the product's, its variants, and the controls
datamodel        how well a sum of scores tells the loss after fine-tuning (LDS), with intervals
metagradient     exact influence, by differentiating through a fine-tuning: the ceiling
"""
