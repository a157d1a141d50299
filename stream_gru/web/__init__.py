"""The HTTP endpoints: they read what the daemon publishes and never change anything."""
