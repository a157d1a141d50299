"""Seeded simulators: recordings that anyone can make again, bit for bit, from a seed."""
