"""How good after how many minutes?  python benchmarks/minutes.py ckpt/textiles [ckpt/another ...]

Reads the metrics.csv of runs that measured a distance (`--train.distance_images 256`); prints and draws it and the
validation loss against minutes of training, evaluations not counted: images seen over the images/s of each stretch.
"""

import csv
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

import cli
from config import UserError, from_dict
from evaluation import compare, features
from lessons import figure

HEIGHT = 330  # pixels of each panel
TITLES = {compare.names(name)[0]: compare.titles(name)[0] for name in features.NAMES}


def curve(folder):
    """(name of the distance, [(minutes, step, validation loss, distance)]) of a run, one row an evaluation."""
    folder = Path(folder)
    try:
        train = from_dict(json.loads((folder / "config.json").read_text())).train
        with open(folder / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        name = next((n for n in (rows[0] if rows else ()) if n in TITLES and any(row[n] for row in rows)), None)
        if name is None:
            raise UserError(f"{folder}: its evaluations measured no distance; train with --train.distance_images 256")
        minutes, before, found = 0.0, 0, []
        rates = [float(row["images_per_s"]) for row in rows]
        for row, rate in zip(rows, rates):
            step = int(row["step"])
            images = (step - before) * train.images_a_step
            # resumed at an evaluation, no step is timed before it: the rate is then that of the others
            minutes, before = minutes + images / (rate or statistics.median(filter(None, rates))) / 60, step
            if row[name]:  # a resumed run may have measured it for a while only
                found.append((minutes, step, float(row["val_loss"]), float(row[name])))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; give the folder of a run") from None
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{folder}: its config.json or metrics.csv is damaged ({error})") from None
    return name, found


def draw(runs, file):
    """runs: {folder: what curve() returns}.  The distance above, the validation loss below."""
    with figure.style():
        fig = figure.blank("How good after how many minutes?", ", ".join(runs), height=110 + 2 * HEIGHT, width=820)
        for i, title in enumerate((TITLES[next(iter(runs.values()))[0]], "validation loss")):
            axes = figure.panel(fig, 100, 60 + (1 - i) * HEIGHT, 690, HEIGHT - 70)
            for folder, (_, rows) in runs.items():
                axes.plot([r[0] for r in rows], [r[3 - i] for r in rows], marker="o", markersize=3, label=folder)
            axes.set(title=title, yscale="log", xlim=(0, None))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 6)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.legend()
        axes.set(xlabel="minutes of training")
        figure.save_png(file, fig)


def main(argv):
    parser = cli.Parser(prog="minutes.py", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--out", default="minutes.png", help="the plot (default minutes.png)")
    args = parser.parse_args(argv)
    runs = {folder: curve(folder) for folder in args.runs}
    for folder, (name, rows) in runs.items():
        print(f"| {folder}: minutes | step | validation loss | {name} |\n|---|---|---|---|")
        for minutes, step, loss, distance in rows:
            print(f"| {minutes:.1f} | {step:,} | {loss:.4f} | {distance:.3f} |")
    draw(runs, args.out)
    print(f"plot      {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
