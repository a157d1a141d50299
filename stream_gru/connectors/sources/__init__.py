"""Sources: where bytes come from, one kind a file."""
