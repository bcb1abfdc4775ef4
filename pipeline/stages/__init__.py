"""The workflow that jobs share: what is pending, who works on it, and where its rows go.

`video_sets` and `indexing` make the clips of a set, `attribution` its motion and features, `two_stages` those of a
shortlist. `ranking`, `finetuning`, `evaluation` and `report` follow. `progress` and `budget` watch a stage, `pilots`
try a few clips, and `run_record` writes the run's configuration and what a job that ended well depended on. Modules
here may print, as jobs do.
"""
