"""How many pictures a second?"""

import time

import torch

import sampling
from measures.table import print_table, write_csv

STEPS = (5, 10, 25, 50)  # by default


def settings(subject, args):
    """What `speed` and `sweep` compare: ([(sampler, steps)], eta, their part of the protocol).

    A sampler that chooses its own steps is there once, with a single level, T.  Raises UserError if one cannot be.
    """
    counts = args.steps or sorted({min(s, subject.diffusion.T) for s in STEPS})
    compared = [
        (sampler, subject.steps(s, sampler))
        for sampler in args.samplers
        for s in ([None] if sampling.chooses_its_steps(sampler) else counts)
    ]
    eta = args.eta or 0.0  # what is compared are the samplers, whatever the run's own eta
    for sampler, steps in compared:
        subject.options(sampler, steps, eta)
    has_eta = any(sampling.has(sampler, "eta") for sampler in args.samplers)
    return compared, eta, {"guidance": subject.guidance, **({"eta": eta} if has_eta else {})}


def speed(subject, args, out):
    """Images a second by sampler and number of steps."""
    numbers = range(subject.group.rank * args.n, (subject.group.rank + 1) * args.n)
    compared, eta, told = settings(subject, args)
    subject.draw(numbers, args.samplers[0], 1, eta)  # the first call is slow
    rows = []
    with subject.bar(len(compared), "setting") as bar:
        for sampler, steps in compared:
            start = time.perf_counter()
            _, evaluations = subject.draw(numbers, sampler, steps, eta)  # on the CPU: the device is done
            seconds = max(subject.group.gather(time.perf_counter() - start))
            rows.append((sampler, steps, evaluations, args.n * subject.group.world / seconds))
            bar.update()
    header = ("sampler", "steps", "evaluations", "images_per_second")
    if subject.group.main:
        write_csv(out / "speed.csv", header, rows)
        print_table(header, rows)
    return {**told, "threads": torch.get_num_threads()}, {f"{s}_{steps}": rate for s, steps, _, rate in rows}
