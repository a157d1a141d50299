"""Training: everything that needs keras, on the workstation only."""
