"""The commands of explore.py, a function each.  Read first: lab.py."""
