"""Checkpoints: a commit stores all state in one transaction, so that a kill at any instant loses and repeats nothing.

    checkpointer.py  recovery at the start, the commit, import and export of one stream
    eviction.py      which streams are in memory: restores stored ones, counts those that are damaged, evicts idle ones
    commit.py        what a commit makes durable, its compressed form in the log
    store.py         the tables, the log before them, and the transaction
    sqlite_file.py   locks the state directory, opens and checks the database and its log, moves a damaged one aside
    state_export.py  one stream as a JSON file, validated before it is imported

Durable state: the rows of the pipeline's state table, the per-stream state of all other components, source positions,
MQTT packets, lengths of output files, outputs that are not acknowledged.  Inputs are acknowledged after the
transaction.  Everything else is computed again from inputs that are read again, or cut off.
"""
