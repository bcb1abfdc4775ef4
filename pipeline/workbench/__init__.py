"""The curator's workbench: every clip of a run, sorted, seen and decided on by people.

`index` holds a run's tables in memory, `views` filters and orders them, `people` reads and writes what people say,
`previews` makes films, `routes` serves it all on loopback. No lease of the run is held.
"""
