"""Candidate, champion and base on the same held-out rows, and the gate between them."""
