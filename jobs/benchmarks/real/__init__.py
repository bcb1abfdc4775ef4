"""Does influence add anything on real videos? ``python -m jobs.benchmarks.real`` answers where people are the looks.

options      how much of everything: the keys ``real.NAME`` of ``--set``, and the short form
layouts      what a folder of labelled clips says of each: its action, its person, its scene
people       which people teach the base, make up the corpus, are queries, are held out: nobody in two
spoiling     clips that are spoiled on purpose, by known means
footage      segments of the videos, decoded, encoded and masked once
bench        what the studies share: the sets, the base model, fine-tunings and gradients; all on disk
scores       every way to score a clip for an action: the product's and the controls
studies      the four studies, each a table
criteria     what counts as failure, said before any result, and the sentence that follows
"""
