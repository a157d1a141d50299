"""Export of a bundle as a file of another tool."""
