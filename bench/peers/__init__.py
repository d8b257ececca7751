"""Peers: the same chain of empty steps in other systems. Each file runs in the bench's own virtual environment."""
