"""The videos of a folder or glob.

`folder_listing` finds the files and what lies inside the shards among them, `file_tree` walks folders and patterns,
`sidecars` reads the captions that lie beside videos, and `files` makes a row of each file.
"""
