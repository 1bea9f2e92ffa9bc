"""Tables: as a file, and on the screen."""

import csv

from files import replacing


def write_csv(path, header, rows):
    """Write a table, whole or not at all."""
    with replacing(path) as temp, open(temp, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def print_table(header, rows):
    """The table for people."""
    text = [header, *([f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in rows)]
    widths = [max(len(row[i]) for row in text) for i in range(len(header))]
    for row in text:
        print("  ".join(cell.rjust(w) for cell, w in zip(row, widths)))
