"""What trainers, curators and robots' recorders have on disk, as rows of a manifest or as other places to read.

`recognition` decides by looking at a folder or file which of them it is; `trainer_files`, `line_files`, `curators` and
`lerobot` read one kind each. What a manifest or a folder is anyway needs no reader here.
"""
