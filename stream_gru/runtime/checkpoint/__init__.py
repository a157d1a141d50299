"""Keeping: a daemon's parts and its store brought together, so that a kill at any instant loses and doubles nothing.

    keeper.py     recovery at the start, the commit
    crowd.py      eviction and return of streams, and what is asked of one
    returning.py  what was stored comes back into the parts that remember it
    residents.py  which streams are in memory, and who of them has been idle for longest
    transfer.py   one stream as a file, to be shown, kept or taken to another gateway

The durable part is everything a daemon remembers: the rows of the pipeline's table, what every other part remembers of
a stream, positions, packets, marks of files, outputs that wait.  It moves in one transaction, and inputs are
acknowledged after it.  What is not durable is either computed again from inputs that come again, or cut off.
"""
