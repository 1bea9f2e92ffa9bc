"""The mathematics: knows no network, no file and no flag.  Read first: schedule.py."""
