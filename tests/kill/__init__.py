"""The proof that nothing is lost or duplicated: a daemon is killed repeatedly, and its results stay the same.

``python -m tests.kill --help`` has the campaigns: mqtt.py, replay.py, ablation.py, io.py.  They are made of

    messages.py   what a device sends: interleaved streams with gaps, late and doubled samples, garbage, resets
    points.py     the named places of the commit and of recovery at which a daemon kills itself
    child.py      the program that does so, or lacks a part of what it promises; the product has no hooks
    life.py       one start of it and how it ended;  kills.py  how each life ends
    runs.py       the daemon's configuration, and a run to the end
    results.py    what is left at the end, and in what two runs differ
"""
