"""Is this code base fast?  Against two others, in one run, on equal work.

    python benchmarks/compare.py --quick

Each contestant lives in its own process and the processes take turns, so that a busy machine is unfair to all alike;
medians over the rounds are shown.  Matrix FLOPs are counted, not guessed, and set against the largest rate that a
matrix product or a convolution reached in the same run.  Peers that are not installed are skipped.
Read next: contestants.py, which says what one step of each is.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch.utils.flop_counter import FlopCounterMode

import cli
import machine
from benchmarks.contestants import CONTESTANTS, NETWORKS, STEPS
from config import UserError

SIDE = 32  # pixels


def wait(device):
    """Until the device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


# ---------------------------------------------------------------- one contestant, in a process of its own


def worker(name, network, folder, batch, device, precision, compiled):
    """Answer the requests on stdin, one line of JSON each, on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the peers print goes to stderr

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    try:
        contestant = CONTESTANTS[name](folder, NETWORKS[network], batch, device, precision, compiled)
    except ImportError as error:
        return answer(missing=str(error))
    network = contestant.network
    with FlopCounterMode(display=False) as counter:
        contestant.train(1)
    x, t = torch.randn(1, 3, SIDE, SIDE, device=contestant.device), torch.ones(1, device=contestant.device)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(x, t.long())
    if torch.device(device).type == "cuda":  # what is counted runs uncompiled, and takes more memory
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    answer(
        parameters=sum(p.numel() for p in network.parameters()),
        train_flops=counter.get_total_flops() / batch,
        sample_flops=STEPS * forward.get_total_flops(),
    )
    for line in sys.stdin:
        what, n = json.loads(line)
        wait(device)
        wall, cpu = time.perf_counter(), time.process_time()
        getattr(contestant, what)(n)
        wait(device)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        images = n * batch if what == "train" else n
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if torch.device(device).type == "cuda":
            memory = torch.cuda.max_memory_allocated() / 2**30
        answer(images_per_s=images / wall, images_per_cpu_s=images / cpu, peak_memory_gib=memory)
    return None


class Contestant:
    """The other end of `worker`."""

    def __init__(self, name, network, folder, args):
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        what = {
            "name": name, "network": network, "folder": str(folder), "batch": args.batch, "device": args.device,
            "precision": args.precision, "compiled": args.compile,
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(what)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {}),  # accelerate takes any
        )  # fmt: skip
        self.about = self.listen()
        self.rounds = {"train": [], "sample": []}

    def listen(self):
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            sys.exit("a contestant failed:\n" + self.log.read()[-3000:])
        return json.loads(line)

    def do(self, what, n):
        self.process.stdin.write(json.dumps([what, n]) + "\n")
        self.process.stdin.flush()
        result = self.listen()
        self.rounds[what].append(result)
        return result

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# ---------------------------------------------------------------- the machine


def peak(device, dtype):
    """The largest FLOP/s of a big matrix product and of a wide 3 x 3 convolution: some CPUs prefer the second."""
    n = 2048 if torch.device(device).type == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=dtype)
    batch = 16 if torch.device(device).type == "cpu" else 2048  # on a GPU 16 are over before the clock has ticked
    x = torch.randn(batch, 256, 16, 16, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    found = []
    for flops, work in (
        (2 * n**3, lambda: a @ a),
        (2 * x.numel() * 256 * 9, lambda: torch.nn.functional.conv2d(x, w, padding=1)),
    ):
        seconds = []
        for _ in range(6):
            wait(device)
            start = time.perf_counter()
            work()
            wait(device)
            seconds.append(time.perf_counter() - start)
        found.append(flops / min(seconds))
    return found


def draw_images(folder, count=256):
    """The images that all contestants train on, as PNG files."""
    from PIL import Image

    from dataset import textiles

    (folder / "all").mkdir(parents=True)
    for i, pixels in enumerate(textiles.draw(count, 0, (SIDE, SIDE))[0]):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / "all" / f"{i:04d}.png")


# ---------------------------------------------------------------- the comparison


def compare(args):
    """{network: {contestant: numbers}} and the peak FLOP/s of matrix product and convolution."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision]
    peaks, results = [0.0, 0.0], {}
    with tempfile.TemporaryDirectory() as temp:
        draw_images(Path(temp) / "images")
        for network in NETWORKS:
            field = {}
            for name, kind in CONTESTANTS.items():
                contestant = Contestant(name, network, Path(temp) / "images", args)
                if "missing" in contestant.about:
                    print(f"{name}: skipped ({contestant.about['missing']}); pip install {kind.install}")
                    contestant.close()
                    continue
                contestant.do("train", 3), contestant.rounds["train"].clear()  # warm: memory, caches
                if args.device != "cpu" or args.compile:  # there the first drawing chooses kernels, or makes them
                    contestant.do("sample", args.images), contestant.rounds["sample"].clear()
                field[name] = contestant
            for r in range(args.rounds):
                peaks = [max(a, b) for a, b in zip(peaks, peak(args.device, dtype))]
                for what, n in (("train", args.steps), ("sample", args.images)):
                    for name, contestant in field.items():
                        print(f"{network}, round {r + 1} of {args.rounds}, {what}: {name}", file=sys.stderr)
                        contestant.do(what, n)
            results[network] = {name: summary(contestant) for name, contestant in field.items()}
            for contestant in field.values():
                contestant.close()
    return results, peaks


def version(name):
    """Of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # imported from a folder
        return "(version unknown)"


def summary(contestant):
    """Medians over the rounds, and every round."""
    train, sample = contestant.rounds["train"], contestant.rounds["sample"]

    def median(rounds, key="images_per_s"):
        return statistics.median(r[key] for r in rounds)

    return {
        **contestant.about,
        "train_images_per_s": median(train),
        "train_flops_per_s": median(train) * contestant.about["train_flops"],
        "train_images_per_cpu_s": median(train, "images_per_cpu_s"),
        "sample_images_per_s": median(sample),
        "sample_images_per_cpu_s": median(sample, "images_per_cpu_s"),
        "peak_memory_gib": train[-1]["peak_memory_gib"],
        "rounds": contestant.rounds,
    }


def table(results, peaks):
    """Markdown."""
    lines = [
        f"| network | contestant | parameters | GFLOP per image | training images/s | GFLOP/s | of the peak "
        f"| DDIM-{STEPS} images/s | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network, field in results.items():
        for name, r in field.items():
            lines.append(
                f"| {network} | {name} | {r['parameters'] / 1e6:.1f}M | {r['train_flops'] / 1e9:.1f} "
                f"| {r['train_images_per_s']:.3g} | {r['train_flops_per_s'] / 1e9:.0f} "
                f"| {r['train_flops_per_s'] / max(peaks):.0%} | {r['sample_images_per_s']:.3g} "
                f"| {r['peak_memory_gib']:.1f} GiB |"
            )
    return "\n".join(lines)


def ratios(results):
    """Ours over the best peer in images/s, and over the best in FLOP/s, which may be another: their networks differ.

    One line a network and quantity; rounds are paired, so a slow minute cancels.
    """
    lines = []
    for network, field in results.items():
        peers = {k: v for k, v in field.items() if k != "ours"}
        if "ours" not in field or not peers:
            continue
        for what, flops in (("train", "train_flops"), ("sample", "sample_flops")):
            for key, label in (("images_per_s", "by the clock"), ("images_per_cpu_s", "by CPU time")):
                images, work = [], []
                for name, peer in peers.items():
                    pairs = zip(field["ours"]["rounds"][what], peer["rounds"][what])
                    ratio = statistics.median(a[key] / b[key] for a, b in pairs)
                    images.append((ratio, f"{ratio:.2f} times the images/s of {name}"))
                    ratio *= field["ours"][flops] / peer[flops]
                    work.append((ratio, f"{ratio:.2f} times the FLOP/s of {name}"))
                lines.append(f"{network}, {what}, {label}: {min(images)[1]}, {min(work)[1]}")
    return "\n".join(lines)


def main(argv):
    p = cli.Parser(prog="compare.py", description=__doc__.split("\n")[0])
    p.add_argument("--quick", action="store_true", help="two short rounds")
    p.add_argument("--rounds", type=cli.whole(1), help="turns of each contestant (default 5; 2 with --quick)")
    p.add_argument("--steps", type=cli.whole(1), help="training steps a turn (default 4; 3 with --quick; 50 on a GPU)")
    p.add_argument(
        "--images", type=cli.whole(1), help="pictures sampled a turn (default 8; 4 with --quick; 128 on a GPU)"
    )
    # a peer takes no fewer than 16
    p.add_argument(
        "--batch", type=cli.whole(16), help="images a training step (default 32; 16 with --quick; 128 on a GPU)"
    )
    p.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--precision", choices=("fp32", "bf16"), help="of all (default bf16 on a GPU, fp32 on a CPU)")
    p.add_argument("--compile", action="store_true", help="torch.compile every network")
    p.add_argument("--json", default="compare.json", help="where the numbers of every round go")
    args = p.parse_args(argv)
    args.device = str(machine.choose_device(args.device))
    if args.device not in ("cpu", "cuda:0"):
        raise UserError(
            f"--device {args.device}: the peers take the first GPU; choose by CUDA_VISIBLE_DEVICES, --device cuda"
        )
    cli.writable("--json", args.json)
    gpu = args.device.startswith("cuda")
    args.precision = args.precision or ("bf16" if gpu else "fp32")
    args.batch = args.batch or (128 if gpu else 16 if args.quick else 32)
    args.rounds = args.rounds or (2 if args.quick else 5)
    steps, images = (50, 128) if gpu else (3, 4) if args.quick else (4, 8)
    args.steps, args.images = args.steps or steps, args.images or images
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    start, load = time.perf_counter(), os.getloadavg()[0]
    results, peaks = compare(args)
    about = {
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "peers": {name: version(name) for field in results.values() for name in field if name != "ours"},
        "hardware": torch.cuda.get_device_name() if gpu else f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "batch": args.batch, "images_per_sampling": args.images, "rounds": args.rounds,
        "precision": args.precision, "compile": args.compile,
        "load_before": load, "load_after": os.getloadavg()[0],
        "peak_matmul": peaks[0], "peak_convolution": peaks[1],
    }  # fmt: skip
    versions = ", ".join(f"{name} {of}" for name, of in {"torch": about["torch"], **about["peers"]}.items())
    print(table(results, peaks))
    print()
    print(ratios(results))
    print(
        f"\n{about['hardware']}, {args.precision}, batch {args.batch}, n = {args.rounds} rounds, commit "
        f"{about['commit']}, {versions}; peak: matrix product {peaks[0] / 1e9:.0f}, convolution "
        f"{peaks[1] / 1e9:.0f} GFLOP/s; load {load:.1f} before, {about['load_after']:.1f} after; "
        f"{time.perf_counter() - start:.0f} s"
    )
    Path(args.json).write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:  # not by cli.run: the memory that it keeps is ours alone, no peer's
        worker(**json.loads(sys.argv[2]))
    else:
        sys.exit(cli.run(main))
