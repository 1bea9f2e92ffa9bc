"""Would the tests notice?  Plants one fault at a time in a copy of the source and runs the tests on it.

    python benchmarks/faults.py            # all, in some minutes
    python benchmarks/faults.py EMA root   # those whose name or file has one of these words

Every fault must turn a test red; the table names the first one that did.  A fault that survives is a defect of the
suite, and the exit code says so.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cli
from config import UserError

MATHS = "tests/test_process.py tests/test_samplers.py tests/test_schedule.py"

# fmt: off
# ruff: noqa: E501 - a table
# (what is wrong, file, right, wrong, tests that should see it)
FAULTS = [
    ("timestep label off by one in the loss", "diffusion/process.py", "self.ask(model, self.q_sample(x_0, t, eps), t, y)",
     "self.ask(model, self.q_sample(x_0, t, eps), t - 1, y)", MATHS),
    ("t drawn from 0..T-1", "diffusion/process.py", "torch.randint(1, self.T + 1,", "torch.randint(0, self.T,", MATHS),
    ("missing square root in q(x_t | x_0)", "diffusion/schedule.py", "(1 - self.alpha_bar).sqrt()", "1 - self.alpha_bar", MATHS),
    ("posterior coefficients swapped", "diffusion/process.py",
     "column(of_x_0, x_t) * x_0 + column(of_x_t, x_t) * x_t", "column(of_x_t, x_t) * x_0 + column(of_x_0, x_t) * x_t", MATHS),
    ("beta not re-spaced for a skipped step", "diffusion/schedule.py",
     "1 - entry(self.alpha_bar, t) / entry(self.alpha_bar, s)", "entry(self.betas, t)", MATHS),
    ("variance where a standard deviation belongs", "diffusion/samplers.py", "variance).sqrt()", "variance)", MATHS),
    ("noise on the last step", "diffusion/samplers.py", "noise_like(x) if s > 0 else mean", "noise_like(x)", MATHS),
    ("eps not re-derived after clipping", "diffusion/process.py",
     "eps = (x_t - at(self.signal, t, x_t) * x0) / at(self.noise, t, x_t)", "pass", MATHS),
    ("sigma forgotten under the root of DDIM", "diffusion/samplers.py", "(1 - ab[s] - sigma**2)", "(1 - ab[s])", MATHS),
    ("sign of v flipped", "diffusion/process.py", "* eps - at(self.noise, t, x_0) * x_0", "* eps + at(self.noise, t, x_0) * x_0", MATHS),
    ("min-SNR divided by SNR for v", "diffusion/process.py", '"v": snr + 1', '"v": snr', MATHS),
    ("guidance scale taken as the paper's w", "diffusion/process.py", "unconditional + guidance * (",
     "conditional + guidance * (", MATHS),
    ("last level of a subsequence missing", "diffusion/steps.py", "range(n, 0, -1)", "range(n - 1, 0, -1)", MATHS),
    ("cosine without its square", "diffusion/schedule.py", "* math.pi / 2) ** 2", "* math.pi / 2)", MATHS),
    ("EMA decay swapped", "models/ema.py", "weight = 1.0 - self.decay()", "weight = self.decay()", "tests/test_ema.py"),
    ("EMA without warm-up", "models/ema.py", '"ratio": lambda n: (1 + n) / (10 + n)', '"ratio": lambda n: 1.0', "tests/test_ema.py"),
    ("a skip connection dropped", "models/unet.py", "torch.cat([h, skip], dim=1)",
     "torch.cat([h, skip * (skip.shape[-1] > 8)], dim=1)", "tests/test_models.py"),
    ("skips in the wrong order", "models/unet.py", "zip(blocks, reversed(maps))", "zip(blocks, maps)", "tests/test_models.py"),
    ("residual of the ResBlock forgotten", "models/blocks.py", "return self.skip(x) + h", "return h", "tests/test_models.py"),
    ("scaled by w where w + 1 belongs", "models/blocks.py", "* (w + 1) + b", "* w + b", "tests/test_models.py"),
    ("residual of the attention forgotten", "models/attention.py", "return x + self.proj(", "return self.proj(", "tests/test_models.py"),
    ("linear attention without its normaliser", "models/attention.py", "q @ context / normaliser", "q @ context", "tests/test_models.py"),
    ("time frequencies one short of 1/10000", "models/embedding.py", "device=t.device) / (half - 1)", "device=t.device) / half", "tests/test_models.py"),
    ("truncation to uint8", "dataset/pixels.py", ".round().clamp", ".clamp", "tests/test_pixels.py"),
    ("every epoch in the same order", "dataset/batches.py", "(self.seed, epoch)", "(self.seed, 0)", "tests/test_pixels.py"),
    ("the process group held by a default argument", "processes.py", "from torch.distributed.nn import functional", "pass", "tests/test_processes.py"),
    ("the process group held by a network", "processes.py", "gc.collect()", "pass", "tests/test_processes.py"),
    ("accumulated gradients summed, not averaged", "trainer.py", "/ c.accumulate\n", "\n", "tests/test_trainer.py"),
    ("validation on the raw weights", "examine.py", "trainer.diffusion.loss(trainer.ema.model", "trainer.diffusion.loss(trainer.model", "tests/test_trainer.py"),
    ("the optimiser forgotten on resume", "resume.py", 'trainer.optimizer.load_state_dict(state["optimizer"])', "pass", "tests/test_trainer.py"),
    ("a poisoned gradient applied", "trainer.py", "self.optimizer.found_inf = bad.float()", "pass", "tests/test_trainer.py"),
    ("random numbers not tied to the step", "trainer.py", "seed_everything(c.seed, k)\n", "pass\n", "tests/test_trainer.py"),
    ("checkpoints unpickled as code", "models/checkpoint.py", '"cpu", weights_only=True', '"cpu", weights_only=False', "tests/test_checkpoint.py"),
    ("levels spent where hardly any picture is left", "diffusion/steps.py", ".clamp(min=SIGMA_MAX**-2)", "", "tests/test_solvers.py"),
    ("dpmpp's step ratio upside down", "diffusion/dpmpp.py", "r = h_before / h", "r = h / h_before", "tests/test_solvers.py"),
    ("heun's slopes added, not averaged", "diffusion/heun.py", "(sigma[s] - sigma[t]) / 2", "(sigma[s] - sigma[t])", "tests/test_solvers.py"),
    ("score pointing at the noise", "diffusion/ode.py", "return -eps / schedule.noise", "return eps / schedule.noise", "tests/test_solvers.py"),
    ("the ODE followed to level 0, where no network is", "diffusion/ode.py", "phis[max(s, 1)]", "phis[s]", "tests/test_solvers.py"),
    ("Langevin noise without its root", "diffusion/pc.py", "(2 * step).sqrt() * z", "(2 * step) * z", "tests/test_solvers.py"),
    ("likelihood with the volume's sign flipped", "diffusion/ode.py", "+ d * end[:, d]", "- d * end[:, d]", "tests/test_solvers.py"),
    ("KL divergence the wrong way round", "diffusion/bound.py", "ratio = variance_1 / variance_2", "ratio = variance_2 / variance_1", "tests/test_evaluate.py"),
    ("EDM's skip and output swapped", "diffusion/edm.py", "return c_skip * x_bar + c_out * prediction,", "return c_out * x_bar + c_skip * prediction,", "tests/test_edm.py"),
    ("EDM's noise drawn without its deviation", "diffusion/edm.py", "MEAN + STD * torch.randn", "MEAN + torch.randn", "tests/test_edm.py"),
    ("learned variance mixed without logarithms", "diffusion/learned_variance.py", "return (self.mix * column(beta.log(), self.mix) + (1 - self.mix) * column(small.log(), self.mix)).exp()",
     "return self.mix * column(beta, self.mix) + (1 - self.mix) * column(small, self.mix)", "tests/test_learned_variance.py"),
    ("guidance applied to the learned variance", "diffusion/learned_variance.py", "super().guide(c, u, guidance), mix]",
     "super().guide(c, u, guidance), mix + guidance * (mix - _)]", "tests/test_learned_variance.py"),
    ("the bound teaching the mean too", "diffusion/learned_variance.py", "prediction.detach()", "prediction", "tests/test_learned_variance.py"),
    ("biased covariance in the Frechet distance", "evaluation/frechet.py", "(len(x) - 1)", "len(x)", "tests/test_evaluate.py"),
    ("a point's similarity to itself in the kernel distance", "evaluation/kernel.py", "(xx.sum() - xx.trace())", "xx.sum()", "tests/test_evaluate.py"),
    ("inversion turned the wrong way", "diffusion/invert.py", "(x + turn.sin() * v)", "(x - turn.sin() * v)", "tests/test_edit.py"),
    ("known pixels not noised in inpainting", "diffusion/inpaint.py", "+ schedule.noise[s] * noise_like(x)", "", "tests/test_edit.py"),
]
# fmt: on


def plant(tree, file, right, wrong):
    """Replace the one place where `right` stands."""
    path = tree / file
    text = path.read_text()
    if text.count(right) != 1:
        sys.exit(f"{file}: {right!r} stands {text.count(right)} times, not once; bring FAULTS up to date")
    path.write_text(text.replace(right, wrong))
    return text


def first_red(tree, *tests):
    """Name of the first test that fails, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *sorted(tests)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    found = re.search(r"^(?:FAILED|ERROR) (?:\S*?::)?(\w+)", done.stdout, re.M)
    return None if done.returncode == 0 else found[1] if found else "something"


def main(argv):
    p = cli.Parser(prog="faults.py", description=__doc__.split("\n")[0])
    p.add_argument("words", nargs="*", help="only the faults whose name or file contains one of these")
    words = p.parse_args(argv).words or [""]
    faults = [fault for fault in FAULTS if any(word in fault[0] + " " + fault[1] for word in words)]
    if not faults:
        raise UserError(f"no fault has {' or '.join(words)} in its name or file")
    survivors = 0
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        foreign = (".git", "ckpt", "out", "data", ".venv", "venv", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*foreign))
        if red := first_red(tree, *{t for fault in faults for t in fault[-1].split()}):
            sys.exit(f"{red} is red without any fault; mend that first")
        print("| fault | file | turned red |\n|---|---|---|")
        for what, file, right, wrong, tests in faults:
            before = plant(tree, file, right, wrong)
            red = first_red(tree, *tests.split())
            (tree / file).write_text(before)
            survivors += red is None
            print(f"| {what} | `{file}` | {red or '**nothing: it survived**'} |", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
