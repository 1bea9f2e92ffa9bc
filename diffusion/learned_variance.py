"""How much noise should a reverse step add?  Let the network say, pixel by pixel.

DDPM's two choices, β̃ ("small") and β ("large"), are exact for data that is one point and for white noise; the truth
lies in between.  Nichol & Dhariwal 2021 ("iDDPM") let the network output a second half: where between the two, on a
logarithmic scale.  L_simple does not see variances, so a little of the bound is added to teach them.
Read first: process.py, bound.py.  `ddpm` with variance="learned" then draws with it.

The paper calls that place v.  Here v is a prediction, so it is called `mix`: 0 is β̃, 1 is β.
"""

from dataclasses import replace

import torch

from diffusion import bound
from diffusion.process import GaussianDiffusion, column

LAMBDA = 0.001  # weight of the bound, which is in bits per dimension


class Guess(tuple):
    """(x0_hat, eps_hat), which every sampler unpacks, and with it the variance, for those that ask.

    Being a pair like any other guess, it passes through samplers and wrappers that know of no variance.
    mix: (B, C, H, W), share of β in the logarithm of the variance; not kept within 0..1, as in the paper.
    """

    def __new__(cls, x0, eps, mix, schedule):
        guess = super().__new__(cls, (x0, eps))
        guess.mix, guess.schedule = mix, schedule
        return guess

    def to(self, *args):
        """As Tensor.to, of all three."""
        return Guess(*(z.to(*args) for z in (*self, self.mix)), self.schedule)

    def variance(self, t, s):
        """Variance of the reverse step t -> s, like x; t, s: ints, or (B,)."""
        beta, small = self.schedule.jump_beta(t, s), self.schedule.posterior_variance(t, s)
        small = torch.where(small > 0, small, self.schedule.posterior_variance(2, 1))  # β̃_1 = 0 has no logarithm
        # Σ = exp(v log β + (1-v) log β̃), v being the mix                                              iDDPM Eq. (15)
        return (self.mix * column(beta.log(), self.mix) + (1 - self.mix) * column(small.log(), self.mix)).exp()


def mix_of(half):
    """The network's second half as a mix: -1 is β̃, 1 is β, and 0, where training begins, is halfway."""
    return (half + 1) / 2


class LearnedVariance(GaussianDiffusion):
    """GaussianDiffusion for a network with 2C output channels: the prediction, and where the variance lies.

    Raises ValueError, too, for a schedule of one level.
    """

    def __init__(self, schedule, prediction="eps", min_snr_gamma=None):
        if schedule.T < 2:
            raise ValueError(f"a learned variance needs at least 2 levels, not {schedule.T}")
        super().__init__(schedule, prediction, min_snr_gamma)
        self.on_device = schedule  # the tables, where the training is

    def to(self, device):
        """As in the base class."""
        super().to(device)
        s = self.schedule
        self.on_device = replace(s, betas=s.betas.to(device), alpha_bar=s.alpha_bar.to(device))
        return self

    def loss(self, model, x_0, y=None, *, t=None, eps=None):
        """L_hybrid of each image: (B,).  Arguments as in the base class."""
        t = self.draw_t(len(x_0), x_0.device) if t is None else t
        eps = torch.randn_like(x_0) if eps is None else eps
        x_t = self.q_sample(x_0, t, eps)
        prediction, half = self.ask(model, x_t, t, y).chunk(2, dim=1)
        simple = self.weighted_error(prediction, x_0, eps, t)
        x0_hat, eps_hat = self.to_x0_eps(prediction.detach(), x_t, t)  # the bound teaches the variance alone
        guess = Guess(x0_hat, eps_hat, mix_of(half), self.on_device)
        # L_hybrid = L_simple + λ L_vlb; L_vlb is a sum over T levels, of which this t is one            iDDPM Eq. (16)
        return simple + LAMBDA * self.T * self.vlb_term(guess, x_0, x_t, t).to(simple.dtype)

    def vlb_term(self, guess, x_0, x_t, t):
        """The term of the bound that belongs to t, (B,), in bits per dimension: L_0 for t = 1, else L_{t-1}.

        The bound asks a denoiser; the network has answered already, so these denoisers only repeat it.
        """
        guess, x_0, x_t = guess.to(torch.float64), x_0.double(), x_t.double()  # the decoder's tails need it
        # Both for every image: to pick those of t = 1 first, the host would have to wait for the device.  The others
        # are given x_0 for their guess there: far from it the gradient overflows, and 0 times that is NaN.
        near = Guess(torch.where(column(t, x_0) == 1, guess[0], x_0), guess[1], guess.mix, self.on_device)
        decoder = bound.decoder_term(self.on_device, lambda *_: near, x_0, x_t, "learned")
        step = bound.step_term(self.on_device, lambda *_: guess, x_0, x_t, t.clamp(min=2), "learned")
        return bound.in_bits(torch.where(t == 1, decoder, step), x_0)

    def guide(self, conditional, unconditional, guidance):
        """Guidance moves the prediction; the variance stays the one with the label."""
        (c, mix), (u, _) = conditional.chunk(2, dim=1), unconditional.chunk(2, dim=1)
        return torch.cat([super().guide(c, u, guidance), mix], dim=1)

    def guess(self, output, x_t, t, clip):
        """As in the base class, and a Guess."""
        prediction, half = output.chunk(2, dim=1)
        return Guess(*super().guess(prediction, x_t, t, clip), mix_of(half), self.schedule)
