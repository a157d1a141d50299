"""Fuzzing of everything that reads what others wrote: ``python -m tests.fuzz --target json --cases 1000000``.

    corpus/<target>/*  ──▶ Mutator ──▶ pieces ──▶ Target.check ──▶ reasons seen, or a failing case in a file
    seeds, in the tree     seeded      1..3 bytes   properties

Case ``n`` of a seed is always the same one, so that a failure is found again by its numbers alone.  To add a target: a
class with `check` and a row in `tests.fuzz.targets.TARGETS`, and a folder of seeds.
"""
