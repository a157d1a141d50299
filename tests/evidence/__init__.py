"""The results on public recordings in docs/real-recordings.md, and how to reproduce them."""
