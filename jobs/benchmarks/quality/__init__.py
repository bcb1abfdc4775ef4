"""Does it pick the right clips? ``python -m jobs.benchmarks.quality`` answers by fine-tuning on what it picked.

problem          the synthetic world's clips, queries and held-out clips, encoded once; the base model
lessons          what a base model is taught, and its training
base_model       a job: trains the base model
retraining       a short fine-tuning on some of the clips, and the held-out losses after it: the truth
kernels          inner products of whole gradients by part of the model, for every setting: what influence is made of
versions         queries in other looks and as spoiled twins, and what each asks for by them
influences       every way to score a clip for a motion: the product's, its variants, and the controls
methods          what is compared, by name: rules, controls, single changes, cheaper attributions
datamodel        how well a sum of scores tells the loss after fine-tuning (LDS), with intervals
retrieval        what a score finds: the same motion, real clips before their cartoons
counterfactual   what every arm fine-tunes on, and what that does
budgets          selections that weigh the masked loss against the plain one, or a motion against the others
halves           within classes: what the upper half by a score teaches more than the lower half
shares           how much to select: the first 1 to 50 % by an arm, for equally many steps
laws             how far a video's motion is from the law of its kind
metagradient     exact influence, by differentiating through a fine-tuning: the ceiling
tasks            Ray's tasks; what is on disk is not done again
studies          the studies in their order, each a table
worlds           a small study in several worlds: other corpora, another base, a shifted world
report           the tables and plots
"""
