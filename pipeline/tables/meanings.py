"""What every column of every table of a run means, for docs/tables.md and for whoever reads the code."""

from __future__ import annotations

from collections.abc import Mapping

Meanings = Mapping[str, str]

_CLIP_ID = "Names the clip in every table."
_QUERY_ID = "Names the query: it is the query's `clip_id` in `queries/`."
_ERROR = "Why there is no result: a short code, a colon and a sentence. Null for a result."
_VERSION = "Which state of the video file it is: an etag, or size and modification time."
_SEED = "The seed of the generated video; 0 for a held-out clip."
_TRAINING = "Which training of the arm it is."
_LOW = "Lower end of its 95 % interval; null where there are too few values to tell."
_HIGH = "Upper end of the same interval."


def _with_interval(name: str, meaning: str) -> dict[str, str]:
    return {name: meaning, f"{name}_low": _LOW, f"{name}_high": _HIGH}


CLIPS: Meanings = {
    "clip_id": f"{_CLIP_ID} The manifest's own `id`, else a hash of the path below the data's root, the size and the "
    "segment; a bucket that moves changes no id.",
    "uri": "Address of the video file: a path, or `s3://`.",
    "version": _VERSION,
    "source": "Where the video comes from: its folder, or the manifest's column.",
    "start_frame": "First frame of the segment, counted in the file's own frames.",
    "num_frames": "Frames of the segment after resampling.",
    "fps": "Frames a second after resampling.",
    "height": "Pixels, after rotation.",
    "width": "Pixels, after rotation.",
    "caption": "Text of the clip; empty where there is none.",
    "cuts": "Frames at which a shot changes.",
    "error": _ERROR,
}
QUERIES: Meanings = {
    **CLIPS,
    "group": "Name of the query's motion: its folder, or the manifest's column.",
    "mask_box": "The part of it whose motion counts, where that is not all of it: `left,top,right,bottom` as shares of "
    "the picture, and perhaps the first and the last second after that. Outside, the motion mask is 0.",
}
_STRETCH = "Name of the stretch: a hash of the video's address and version, and its number."
STRETCHES: Meanings = {
    "stretch": _STRETCH,
    "uri": "Address of the video file.",
    "version": _VERSION,
    "number": "Place of the stretch in its video, from 0.",
    "count": "Stretches of the video.",
    "start_frame": "Its first frame, counted in the file's own frames.",
    "num_frames": "Its frames.",
    "seconds": "Its duration.",
}
CHANGES: Meanings = {
    "stretch": _STRETCH,
    "uri": "Address of the video file.",
    "version": _VERSION,
    "number": "Place of the stretch in its video, from 0.",
    "count": "Stretches of the video.",
    "height": "Pixels, after rotation.",
    "width": "Pixels, after rotation.",
    "times": "When each frame is shown, in seconds.",
    "pixels": "How much the pixels of each frame but the first differ from those of the frame before it, 0 to 1.",
    "colours": "How much its colours do, 0 to 1.",
    "first": "Thumbnail of the first frame, 18 x 32 pixels of red, green and blue, in base64.",
    "last": "Thumbnail of the last frame, in the same form.",
    "problem": "Why the stretch cannot be used; its video is indexed as a whole then.",
}
MOTION: Meanings = {
    **CLIPS,
    "mask": "Motion weight of every latent place, 0 to 255, as bytes; null where the clip has no mask.",
    "mask_shape": "Latent frames, height and width of the mask.",
    "motion_mean": "Mean length of the optical flow, in pixels a frame at the working size.",
    "motion_p95": "95th percentile of the same lengths.",
    "camera_share": "Share of the flow's mean length that the camera's motion explains, 0 to 1.",
    "error": f"{_ERROR} A still clip has `no_motion`, and keeps its statistics.",
}
MOVEMENT: Meanings = {
    "clip_id": _CLIP_ID,
    "version": _VERSION,
    "description": "The numbers that the judge compares: six courses (amount, timing, acceleration, jerk, spreading, "
    "turning) in eight equal parts of the clip, by the flow without the camera's.",
    "flaws": "What breaks the motion: the longest stretch in which the picture stands while the rest moves, and the "
    "other steps that show a frame again, as shares of the clip's steps; the largest change of the picture over the "
    "median one.",
    "colours": "The share of each colour in what moves: four steps of red, green and blue.",
    "error": f"{_ERROR} A still clip has its movement.",
}
PICTURES: Meanings = {
    "clip_id": _CLIP_ID,
    "version": _VERSION,
    "signature": "320 numbers of int8: the mean picture in 8 x 8 cells, and how each cell differs from it in four "
    "stretches of the clip; null for a clip of one colour.",
    "error": _ERROR,
}
FEATURES: Meanings = {
    "clip_id": _CLIP_ID,
    "version": _VERSION,
    "feature": "Projected gradient under each setting, one after the other, not normalised. A setting is a timestep, a "
    "noise and a mask; the metadata key `settings` lists them in their order. With `attribution.storage` float16 or "
    "int8 the numbers have that type and their direction alone.",
    "norm": "Length of the projected gradient under each setting; 0 where the clip has none.",
    "loss": "The model's loss on the clip under each setting.",
    "num_frames": "Frames of the clip.",
    "error": _ERROR,
}
CHOSEN: Meanings = {
    "clip_id": _CLIP_ID,
    "rank": "Place by the cheaper attribution, from 0.",
    "mean_influence": "Mean influence by the cheaper attribution, over the queries of the group that is trained for.",
    "reason": "Why the clip is on the shortlist: `top`, `bottom` or `audit`. Null: it is not.",
    "audited": "Whether the clip was drawn at random, for whatever other reason it is on the shortlist.",
}
INFLUENCE: Meanings = {
    "clip_id": _CLIP_ID,
    "influence": "Influence on each query, in the order of the metadata key `query_ids`.",
}
INFLUENCE_BY_SETTING: Meanings = {
    "clip_id": _CLIP_ID,
    "influence": "Mean influence on each group's queries by one setting alone, times the number of settings: the mean "
    "over the settings is the mean influence. All groups of the first setting come first, in order of their names; the "
    "metadata key `groups` has the group of each query.",
}
NEIGHBORS: Meanings = {
    "query_id": _QUERY_ID,
    "clip_id": _CLIP_ID,
    "rank": "Place from 0; rank 0 is the most positive, or the most negative.",
    "influence": "Influence of the clip on the query.",
    "sign": "`positive` for the nearest clips, `negative` for the farthest.",
}
LAWFULNESS: Meanings = {
    "clip_id": _CLIP_ID,
    "group": "The motion that the clip shows: a group of queries.",
    "distance": "How far its movement is from that of the nearest query of the group, in spreads within groups.",
    "quantile": "The share of lawful clips that would be as far or farther, by the queries' own distances from one "
    "another; null where no group has two queries.",
    "law": "The course that is farthest off for what is usual: `amount`, `timing`, `acceleration`, `jerk`, "
    "`spreading` or `turning`.",
    "named_by": "What says that the clip shows this motion: its `caption`, a `column` of the manifest, or, where "
    "nobody names it, the nearest queries' `flow`.",
    "flaw": "What spoils the clip whatever it shows: it is `frozen`, `repeats` frames, or has a `cut`. Null: nothing.",
    "flaw_measure": "How much of it: a share of the clip's steps, or of a cut the change of the picture over the usual "
    "one.",
}
SELECTION: Meanings = {
    "clip_id": _CLIP_ID,
    "group": "A group of queries, or `all` for all of them.",
    "votes": "How many queries of the group count the clip among their first.",
    "mean_influence": "Mean influence over the group's queries, less `ranking.spare` times that over the others; null "
    "where the clip is not ranked.",
    "rank": "Place in the ranking, from 0; null where the clip is not ranked.",
    "decision": "`selected`, `harmful` or `neutral`.",
    "weight": "The mean influence, none below zero, over the sum of all clips'.",
    "reason": "The decision's reason in words.",
    "rule": "What decided: `fraction` or `above` (the place in the ranking), `lawfulness`, `duplicate`, `cap COLUMN`, "
    "or `not ranked`.",
    "choice": "Place in the order of choice, from 0: the selection of any fraction is the clips with the lowest; null "
    "where a rule bars the clip.",
    "duplicate_of": "The clip that stands for this near-duplicate in the selection; null: none.",
    "rank_low": "The first rank of the clip's interval (`ranking.interval`) over draws of queries and, where the "
    "ranking compares two settings or more, of settings; null: not known.",
    "rank_high": "... and the last. Where one is in the selection and the other is not, the clip is on the edge.",
}
TIMES: Meanings = {
    "clip_id": _CLIP_ID,
    "band": "Number of a band of timesteps, from 0; low ones have little noise.",
    "first": "Timestep of 1000 at which the band begins.",
    "last": "... and ends.",
    "score": "Mean influence of the clip on the arm's queries by the settings of the band, less the mean of all ranked "
    "clips, over their standard deviation; null where the clip has no influence.",
    "weight": "How many times as often as in other arms the clip is drawn in the band, before its shares are scaled to "
    "a sum of 1.",
}
EVALUATION: Meanings = {
    "arm": "Name of the arm; in a night `base`, `in_use` or `candidate`.",
    "clip_id": "The held-out clip; for a generated video, the query whose caption it was generated from.",
    "uri": "Address of the held-out or generated video.",
    "seed": _SEED,
    "metric": "Name of the metric; `preference_margin_TWIN` holds the clip against its twin of that name.",
    "value": "Value of the metric.",
    "version": _TRAINING,
    "content": "What it was evaluated on: a hash of the clip's video version, caption and mask, or of what a video was "
    "generated from. Null in rows of earlier versions.",
}
DESCRIPTIONS: Meanings = {
    "kind": "`query`, or `video` for one that an arm generated.",
    "arm": "Name of the arm; empty for a query.",
    "clip_id": "The query; for a generated video, the query whose caption it was generated from.",
    "seed": "The seed of the generated video; 0 for a query.",
    "version": "Which training of the arm it is; for a query, which state of the video file.",
    "uri": "Address of the video.",
    "start_frame": "First frame, counted in the file's own frames.",
    "description": "The numbers that the judge compares.",
    "problem": _ERROR,
}
VERDICTS: Meanings = {
    "judge": "`held_out_loss` or `generated_video`.",
    "ours": "The first of the two arms.",
    "theirs": "The second of the two arms.",
    "clip_id": "The held-out clip; for a generated video, the query whose caption it was generated from.",
    "seed": _SEED,
    "score_ours": "Score of the first arm: a loss, or a distance from the queries. Lower is better.",
    "score_theirs": "Score of the second arm.",
    "verdict": "1 where the first arm wins, 0 for a tie, -1 where the second wins.",
}
CONTESTS: Meanings = {
    "judge": "`held_out_loss` or `generated_video`.",
    "ours": "The first of the two arms.",
    "theirs": "The second of the two arms.",
    "pairs": "How many verdicts there are.",
    "clips": "Of how many clips, or captions, they are.",
    "wins": "How many the first arm wins.",
    "ties": "How many are ties.",
    "losses": "How many the second arm wins.",
    **_with_interval("win", "Wins as a share of the verdicts."),
    **_with_interval("tie", "Ties as a share of the verdicts."),
    **_with_interval("loss", "Losses as a share of the verdicts."),
}
METRICS: Meanings = {
    "metric": "Name of the metric.",
    "arm": "Name of the arm.",
    "n": "How many values there are.",
    "missing": "How many values are null or not finite.",
    "pairs": "How many clips and seeds the arm and the base model both have.",
    "mean": "Mean of the values.",
    "low": _LOW,
    "high": _HIGH,
    "standard_error": "Standard error of the mean.",
    **_with_interval("difference", "Mean difference from the base model, over the pairs."),
    "difference_standard_error": "Standard error of the difference.",
    **_with_interval("relative", "The difference over the base model's mean."),
}
NIGHT_SELECTION: Meanings = {
    "clip_id": _CLIP_ID,
    "uri": "Address of the video file.",
    "version": _VERSION,
    "mean_influence": "Mean influence over the queries of the group that is trained for; null: not ranked.",
    "rank": "Place in the ranking, from 0; null: not ranked.",
    "decision": "`selected`, `harmful` or `neutral`; with `finetune.arm: curated` also `dropped` or `disputed`.",
    "by": "Who decided: `ranking`, or the people whose word it is.",
}
EXPLAINED_QUERIES: Meanings = {
    "clip_id": "The explained clip.",
    "query_id": _QUERY_ID,
    "group": "The query's group.",
    "influence": "Influence of the clip on the query.",
    "rank": "Place of the clip among all clips for this query, from 0.",
    "percentile": "Share of the other clips that rank lower, in per cent.",
    "votes": "Whether the query votes for the clip.",
}
NEAREST: Meanings = {
    "clip_id": "The explained clip.",
    "near_id": "The clip whose feature lies near.",
    "cosine": "Cosine of the two features.",
}
SHARES: Meanings = {
    "clip_id": "The explained clip.",
    "query_id": _QUERY_ID,
    "setting": "Number of the setting, from 0.",
    "latent_frame": "Number of the latent frame, from 0.",
    "layer": "Name of the layer; `all` where layers are not told apart.",
    "share": "Its share in the influence; the shares of a query add up to the influence.",
}
PARTS: Meanings = {
    "clip_id": "The explained clip.",
    "setting": "Number of the setting, from 0.",
    "latent_frame": "Number of the latent frame, from 0.",
    "layer": "Name of the layer; `all` where layers are not told apart.",
    "feature": "Projected gradient of the latent frame's loss in this layer; the parts of a setting add up to its "
    "feature.",
    "loss": "The latent frame's share in the loss.",
    "error": _ERROR,
}
PILOT: Meanings = {
    "clip_id": _CLIP_ID,
    "variant": "`as it stands`, or the cheaper variant of the recipe that was timed.",
    "metric": "Name of the part of a stage; `mask_energy` and `mask_cells` are no parts.",
    "seconds": "Seconds that it took.",
    "value": "What a mask keeps on the model's grid: the share of its energy at the working size (`mask_energy`), and "
    "the cells that weigh more than half of the largest (`mask_cells`).",
    "problem": _ERROR,
}
EXPORTS: Meanings = {
    "clip_id": _CLIP_ID,
    "version": _VERSION,
    "file": "The clip's file, or the tar file that holds it, relative to the folder that the export writes.",
    "bytes": "Size of the clip's video.",
    "copied": "Whether its bytes are those of the source (`export.video: copy`).",
    "problem": _ERROR,
}
_BATCH = "Names what was said at once; the page makes it, so that a batch that is sent twice is one."
_BY = "Who said it."
_AT = "When the server wrote it down, in UTC."
DECISIONS: Meanings = {
    "batch": _BATCH,
    "clip_id": _CLIP_ID,
    "version": "The state of the video file that was decided on; on another state the decision does not count.",
    "group": "The motion that it is about, or `all`.",
    "say": "`keep`, `drop`, or `clear`: what this person said before counts no more.",
    "note": "What the person wrote; null for nothing.",
    "by": _BY,
    "at": _AT,
    "blind": "Whether rank and machine's decision were hidden.",
    "seen_rank": "The clip's rank in the group when it was said; null: not ranked.",
    "seen_decision": "The machine's decision then.",
    "ranking": "Digest of the ranking that was shown.",
}
QUERY_WEIGHTS: Meanings = {
    "batch": _BATCH,
    "query_id": _QUERY_ID,
    "weight": "What the query counts, -1 to 1.",
    "by": _BY,
    "at": _AT,
}
LIKES: Meanings = {
    "batch": _BATCH,
    "clip_id": "The clip that others are to be like.",
    "group": "The motion that it is about, or `all`.",
    "sign": "1: more like this; -1: not like this; 0: taken back.",
    "by": _BY,
    "at": _AT,
    "state": "`approximate`: by the clip's own feature. `asked`: by a gradient of its own as a query, as soon as a job "
    "has taken it.",
}
DUPLICATES: Meanings = {
    "batch": "Names the search that found them.",
    "group": "Names the group of clips that resemble one another.",
    "clip_id": _CLIP_ID,
    "kind": "`bytes`: the same frames of the same bytes; `feature`: their features lie close.",
    "similarity": "Cosine of its feature with that of the group's best; 1 for the same bytes.",
    "best": "Whether it is the one to keep: the best rank, then the largest picture, then the id.",
}
PREVIEWS: Meanings = {
    "clip_id": "Names the clip or the query.",
    "version": _VERSION,
    "pack": "The file below `previews/packs/` that holds the film.",
    "offset": "Where it begins there.",
    "bytes": "How long it is.",
    "frames": "Frames of the film.",
    "fps": "Frames a second.",
}
JUDGEMENTS: Meanings = {
    "person": "Who answered.",
    "arm_a": "The arm that `outcome` is about.",
    "arm_b": "The other arm.",
    "clip_id": "The query whose caption both videos were generated from.",
    "seed": "The seed of both videos.",
    "pair": "Name of the pair in the handout.",
    "outcome": "`win`, `tie` or `loss` of `arm_a`.",
    "left": "The arm whose video was on the left.",
    "seconds": "Seconds until the answer.",
    "counts": "Whether the person passed the catch trials.",
}
SCORES: Meanings = {
    "who": "`everyone`, or `passed` for those who passed the catch trials.",
    "arm_a": "The arm that the shares are of.",
    "arm_b": "The other arm.",
    "judgements": "How many judgements there are.",
    "people": "Of how many people they are.",
    "videos": "Of how many pairs of videos they are.",
    **_with_interval("win", "Wins of `arm_a` as a share of the judgements."),
    **_with_interval("tie", "Ties as a share of the judgements."),
    **_with_interval("loss", "Losses of `arm_a` as a share of the judgements."),
    **_with_interval("net", "Wins less losses, as a share of the judgements."),
    "agreed": "Share of the pairs of judgements of one pair of videos that agree.",
    **_with_interval("alpha", "Krippendorff's alpha: agreement beyond chance."),
}
