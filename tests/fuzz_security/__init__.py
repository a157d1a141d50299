"""Fuzzing of what strangers may hand in: ``python -m tests.fuzz_security --target bundle --cases 100000 --seed 2026``.

    bundle   manifest, weights (as .npz, and one .npy inside a good archive), flatbuffer, with hashes that fit or not
    config   a file of TOML, and what `config show` makes of it
    http     bytes on a connection of the server

The machinery (`tests.fuzz.mutate`, `tests.fuzz.campaign`) and its rules are those of `tests.fuzz`.
"""
