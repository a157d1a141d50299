"""What docs/real-recordings.md shows of public recordings, and how to repeat it."""
