"""Does a training survive any number of violent deaths?  python benchmarks/kill.py [--kills 50] [--seed 0]

Trains once in peace.  Then trains the same thing again, as a process of its own that gets SIGKILL at a random moment
and is resumed, over and over; most kills wait until some file is being written.  At the end both runs must be
equal bit for bit: weights, EMA, optimiser, metrics.  Prints what happened; exit code 1 if anything differs, or if the
training, on a fast machine, was done before the last kill.
"""

import collections
import csv
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cli

STEPS_A_KILL = 18  # the length of the run: far enough that it is still alive at the last kill
FLAGS = shlex.split("""
    --preset smoke --device cpu --model.dropout 0.1 --train.accumulate 2 --train.eval_every 3 --train.batch_size 4
    --diffusion.prediction v --train.lr_schedule cosine --train.warmup_steps 5 --sample.steps 2
""")


def start(folder, steps, resume):
    """One life of the training; it has begun when this returns."""
    command = [sys.executable, "-u", str(ROOT / "main.py"), "--preset", "smoke", "--out", str(folder)]
    command += ["--resume"] if resume else [*FLAGS, "--train.steps", str(steps)]
    # one thread: a tiny network gains nothing from more, and the order of every sum is the same in each life
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    for line in process.stdout:
        if line.startswith("budget"):
            return process
    raise SystemExit(f"it did not start: {process.stderr.read().strip()}")


def finish(process):
    """Let it come to its end."""
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {errors.strip()}")


def live(process, folder, rng):
    """Return at a random moment of this life: after some evaluations and a while, often while it writes."""
    for _ in range(rng.randint(0, 2)):
        process.stdout.readline()
    time.sleep(rng.expovariate(1 / 0.2))
    victim, end = rng.choice([None, "any", "last.pth", "best.pth", "metrics.csv"]), time.perf_counter() + 5
    while victim and process.poll() is None and time.perf_counter() < end:
        written = leftovers(folder)  # a temp file means that something is being written right now
        if victim in written or (victim == "any" and written):
            return


def leftovers(folder):
    """Temp files, by the name of the file that they were to become."""
    names = [p.name for p in Path(folder).rglob(".*.tmp")]
    return [n[1:].rsplit(".", 2)[0] for n in names]


def differences(a, b, path=""):
    """Where two nested states differ in a bit; clock readings are left out."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for k in a if k != "images_per_s" for d in differences(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{path}[{i}]")]
    return [] if a == b else [path]


def read(folder):
    """Everything of a run that must not depend on how often it was killed."""
    folder = Path(folder)
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    return {
        **{name: torch.load(folder / name, weights_only=True) for name in ("last.pth", "best.pth")},
        "metrics.csv": rows,
        "samples": {p.name: p.read_bytes() for p in sorted((folder / "samples").iterdir())},
    }


def torment(scratch, kills, seed=0):
    """Train in peace and train with `kills` kills in the folder `scratch`; returns the findings as a dictionary."""
    peace, war, rng = Path(scratch) / "peace", Path(scratch) / "war", random.Random(seed)
    steps, begun = STEPS_A_KILL * kills, time.perf_counter()
    undisturbed = start(peace, steps, resume=False)
    survived, writing, lost = 0, collections.Counter(), 0
    while survived < kills:
        resume = (war / "last.pth").exists()
        process = start(war, steps, resume)
        live(process, war, rng)
        process.kill()
        _, errors = process.communicate()
        if process.returncode == 0:
            break  # it was done before the kill came
        if process.returncode != -9:
            raise SystemExit(f"exit code {process.returncode} after {survived} kills: {errors.strip()}")
        survived += 1
        writing.update(leftovers(war))
        for name in ("last.pth", "best.pth"):  # what is there is whole, whenever it happened
            if (war / name).exists():
                torch.load(war / name, weights_only=True)
            elif name == "last.pth" and resume:
                lost += 1
    if process.returncode:
        finish(start(war, steps, resume=(war / "last.pth").exists()))
    finish(undisturbed)

    a, b = read(peace), read(war)
    done = [int(row["step"]) for row in b["metrics.csv"]]
    return {
        "kills survived": survived,
        "of these while a file was being written": writing.total(),
        "by file": dict(writing.most_common()),
        "steps": steps,
        "differences": differences(a, b),
        "steps doubled or missing in metrics.csv": len(set(done) ^ {int(r["step"]) for r in a["metrics.csv"]})
        + len(done) - len(set(done)),
        "temp files left": leftovers(war),
        "checkpoints lost": lost,
        "bytes lost": sum(len(v) for k, v in a["samples"].items() if b["samples"].get(k) != v),
        "seconds": round(time.perf_counter() - begun),
    }  # fmt: skip


def main(argv):
    """Parse, torment, report."""
    parser = cli.Parser(prog="kill.py", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=cli.whole(1), default=50, help="default 50")
    parser.add_argument("--seed", type=cli.whole(0), default=0, help="of their moments (default 0)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        found = torment(scratch, args.kills, args.seed)
    for name, value in found.items():
        print(f"{name:<42} {value if value != [] else 'none'}")
    bad = ("differences", "steps doubled or missing in metrics.csv", "temp files left", "checkpoints lost")
    return int(found["kills survived"] < args.kills or any(found[name] for name in bad))


if __name__ == "__main__":
    sys.exit(cli.run(main))
