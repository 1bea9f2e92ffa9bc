"""Which process does a config mean?  The one place that knows them all.  Read first: process.py."""

from diffusion.edm import EDM
from diffusion.learned_variance import LearnedVariance
from diffusion.process import GaussianDiffusion

PROCESSES = {"gaussian": GaussianDiffusion, "edm": EDM, "learned_variance": LearnedVariance}


def from_config(config):
    """The process that a config.Diffusion describes."""
    return PROCESSES[config.process].from_config(config)
