"""Store files safely, and keep to the limits of the machine.

Order: `disk` (every system call that changes a disk), `limits`, `waiting`,
`caches`, `records`, `hdf5_storage`; then `rollback` and `journal` (a file
that changes as a whole or not at all), `lock`, and `atomic` (new files, as
wholes). Knows nothing about images, rows or stores.
"""
