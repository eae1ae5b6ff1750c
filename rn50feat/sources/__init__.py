"""Where files are: folders, lists, archives and remote storage.

In: text that names a place. Out: references to the files there, and their
bytes. `location` decides once what kind of place it is. Order: `reference`,
`listing`, `lists`, `folders`, `local`, `urls`, `remote`, `zip_names`, `zips`,
`tars`, `archive`, `location`, `contents`, `exclusion`, `roots`, `selection`,
`presence`. Never knows what an image is.
"""
