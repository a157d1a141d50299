"""Commands to a running daemon."""
