"""A bundle as a file of another tool."""
