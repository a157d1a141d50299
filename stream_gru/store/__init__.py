"""The store: one SQLite file that holds all a daemon must not forget, moved on by one transaction at a time.

    lock.py      one process at a time, on a disk that keeps its word
    database.py  the file: settings, tables, the check at the start, and what becomes of a damaged one
    log_file.py  whether its log was damaged
    checked.py   bytes with a checksum, bound to what they belong to
    store.py     the transaction, and what is read at the start

It knows nothing of pipelines, sources and sinks; `stream_gru.keeping` brings them together.
"""
