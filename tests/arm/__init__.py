"""Claims about 64-bit ARM, tested on emulated Raspberry Pis: `python -m tests.arm`."""
