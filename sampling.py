"""What do the options of a sampler mean, and which noise levels does it visit?

The answers are the same for all who draw: generate.py, edit.py, evaluate.py and the lessons.  What cannot be asked of
a checkpoint is refused here, in one line.  Read next: diffusion/samplers.py, whose functions these words steer.
"""

import cli
from config import UserError
from diffusion import samplers
from diffusion.steps import adjacent, spaced, spaced_logsnr, spaced_rho

STAGES = 8  # that are shown of a walk: columns of a strip, and all that is known of one that chooses its own steps
SPACINGS = ("logsnr", "time")
# sampler -> {option: how its flag is declared}; a sampler that is not here has none; `spacing` and `rho` choose levels
OPTIONS = {
    "ddpm": {
        "variance": {
            "choices": ("small", "large", "learned"),
            "default": "small",
            "help": "small (default): the posterior's; large: beta; learned: the network's own",
        }
    },
    "ddim": {
        "eta": {
            "type": cli.number(),
            "default": None,
            "help": "0 = no fresh noise, 1 = as ddpm (default: the checkpoint's own)",
        },
        "spacing": {"choices": SPACINGS, "default": "time", "help": "levels even in t (default) or log-SNR"},
    },
    "dpmpp": {"spacing": {"choices": SPACINGS, "default": "logsnr", "help": "levels even in log-SNR (default) or t"}},
    "heun": {"rho": {"type": cli.number(1), "default": 7.0, "help": "levels even in sigma^(1/rho) (default 7)"}},
    "pc": {
        "snr": {
            "type": cli.number(0, 1),
            "default": 0.16,
            "help": "length of a corrector step relative to its noise, below 1 (default 0.16)",
        },
        "corrector_steps": {"type": cli.whole(0), "default": 1, "help": "Langevin steps on each level (default 1)"},
    },
    "ode": {
        "tol": {
            "type": cli.number(1e-5),
            "default": 1e-2,
            "help": "largest error of a step in any pixel (default 0.01)",
        }
    },
}


def options_of(sampler):
    """{option: how its flag is declared} of this sampler."""
    return OPTIONS.get(sampler, {})


def has(sampler, option):
    """Whether this sampler has this option."""
    return option in options_of(sampler)


def defaults(sampler, eta):
    """{option: value} of a sampler when nothing is asked for.  eta: the run's own."""
    options = {name: declared["default"] for name, declared in options_of(sampler).items()}
    return options | ({"eta": eta} if "eta" in options else {})


def chooses_its_steps(sampler):
    """Whether it does: then the levels that it is given are only stops, to show it at, and each costs evaluations."""
    return sampler == "ode"


def usual_steps(sampler, config):
    """How many noise levels a sampler visits when nothing is asked for: `ddpm` all T, the others the run's own number.

    The levels of `ode` are the stages to show.
    """
    usual = STAGES if chooses_its_steps(sampler) else config.diffusion.T if sampler == "ddpm" else config.sample.steps
    return min(usual, config.diffusion.T)


def levels(schedule, n, top, spacing="time", rho=None):
    """n falling noise levels from `top`: even in t, in log-SNR, or with a rho in sigma^(1/rho)."""
    if rho is not None:
        return spaced_rho(schedule, n, rho, top)
    return spaced_logsnr(schedule, n, top) if spacing == "logsnr" else spaced(top, n)


def plan(schedule, steps, options, top=None):
    """(the levels to visit, this many of them from `top`, by default T; the options to hand on to the sampler).

    options: {name: value} of all of them, as OPTIONS declares them.  Raises UserError if eta is too large.
    """
    own = {name: value for name, value in options.items() if name not in ("spacing", "rho")}
    of_levels = {name: value for name, value in options.items() if name not in own}
    timesteps = levels(schedule, steps, top or schedule.T, **of_levels)
    if "eta" in own:
        check_eta(schedule, timesteps, own["eta"])
    return timesteps, own


def check_eta(schedule, timesteps, eta, flag="--eta"):
    """Raise UserError if this eta, which came with `flag`, is too large for a walk over these levels."""
    try:
        samplers.check_eta(schedule, adjacent(schedule, timesteps), eta)
    except ValueError as error:
        raise UserError(f"{flag} {eta:g}: {error}") from None


def check_variance(variance, config, path):
    """Raise UserError if the variance is to be one that the checkpoint has not learned."""
    if variance == "learned" and config.diffusion.process != "learned_variance":
        raise UserError(
            f"--variance learned: {path} has learned none; train with --diffusion.process learned_variance, "
            "or choose small or large"
        )
