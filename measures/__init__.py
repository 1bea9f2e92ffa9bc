"""The commands of evaluate.py, a function each.  Read first: subject.py."""
