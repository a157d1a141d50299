"""Records that travel between the rooms, protocols, errors, timestamps. Imports no other room."""
