"""Which videos there are: folders, globs, manifests and shards, local or on S3.

`videos` is the entrance; it lists a place as one table. `folders`, `manifests` and `shards` read one kind of place
each. `changes` holds the list against the clips that a run has, `passed_columns` the manifest's own columns, and
`refusals` keeps out foreign protocols, playlists, archives and whatever lies outside the base.
"""
