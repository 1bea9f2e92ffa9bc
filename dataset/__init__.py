"""Pixels in, pixels out: knows nothing of t or noise.  Read first: sources.py."""
