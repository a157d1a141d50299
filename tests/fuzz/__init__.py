"""Fuzzing of all readers of foreign input: ``python -m tests.fuzz --target json --cases 1000000``.

    corpus/<target>/*  ──▶ Mutator ──▶ pieces ──▶ Target.check ──▶ reasons seen, or a failing case in a file
    seeds, in the tree     seeded      1..3 bytes   properties

Case ``n`` of a seed is always the same, so that two numbers reproduce a failure.  To add a target, add a class with
`words` and `check`, a row in `tests.fuzz.targets.TARGETS` and a folder of seeds.
"""
