"""What exactly is added to a picture, what does the network have to say about it, and how is that scored?

The forward process (noising) has a closed form; the network learns to undo it by predicting the noise ε, the picture
x_0, or a mixture of the two called v.  Each follows from any other, but they differ in where an error hurts: x̂_0 from ε̂
divides by √ᾱ_t, which near T makes a small error large; ε̂ from x̂_0 divides by √(1-ᾱ_t), the same near 0; from v̂ both
come without any division.  Papers: Ho et al. 2020 ("DDPM"), Salimans & Ho 2022 (v), Ho & Salimans 2022 ("CFG",
guidance), Hang et al. 2023 ("Min-SNR").  Read next: samplers.py, which walks back from noise to a picture.

Letters: B batch, C channels, H height, W width.  ab is ᾱ; t = 1..T, and t = 0 is the data.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.schedule import SCHEDULES, entry, zero_terminal

Denoise = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # (x_t, t) -> (x0_hat, eps_hat): all that a sampler sees
PREDICTIONS = ("eps", "x0", "v")


def column(value, x):
    """`value`, one number or one for each image, (B,), in x's dtype and shaped to multiply the batch x (B, C, H, W)."""
    if value.ndim == 0:
        return value.to(x.dtype)  # one number on the CPU multiplies a tensor anywhere
    return value.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def at(table, t, x):
    """The `entry` of t as a `column` for x."""
    return column(entry(table, t), x)


def q_posterior(schedule, x_0, x_t, t, s):
    """Mean and variance of q(x_s | x_t, x_0), s < t: what the less noisy x_s was, if the picture x_0 were known.

    Bayes' rule on two Gaussians.  α_t and β_t are formed from the pair (ᾱ_t, ᾱ_s): one formula for neighbouring levels
    and for any jump.
    x_0, x_t: (B, C, H, W); t, s: ints, or (B,).  Returns the mean, like x_t, and the variance, as a `column`.
    """
    ab_t, ab_s = entry(schedule.alpha_bar, t), entry(schedule.alpha_bar, s)  # ᾱ_t, ᾱ_s (ᾱ_0 = 1), still in float64
    alpha, beta = ab_t / ab_s, schedule.jump_beta(t, s)  # α_t and β_t when s = t - 1
    # q(x_{t-1} | x_t, x_0) = N(μ̃_t, β̃_t I)                                                       DDPM Eq. (6)
    # x_0 says that x_{t-1} is √ᾱ_{t-1} x_0, with variance 1-ᾱ_{t-1}; x_t says that it is x_t/√α_t, with variance
    # β_t/α_t.  Precisions add up, 1/(1-ᾱ_{t-1}) + α_t/β_t = 1/β̃_t, and the mean is the average by precision,
    # β̃_t (√ᾱ_{t-1} x_0 / (1-ᾱ_{t-1}) + √α_t x_t / β_t).  With β̃_t = (1-ᾱ_{t-1}) β_t / (1-ᾱ_t) put in:
    # μ̃_t = √ᾱ_{t-1} β_t / (1-ᾱ_t) · x_0  +  √α_t (1-ᾱ_{t-1}) / (1-ᾱ_t) · x_t                     DDPM Eq. (7)
    of_x_0 = ab_s.sqrt() * beta / (1 - ab_t)
    of_x_t = alpha.sqrt() * (1 - ab_s) / (1 - ab_t)
    variance = schedule.posterior_variance(t, s)  # β̃_t
    return column(of_x_0, x_t) * x_0 + column(of_x_t, x_t) * x_t, column(variance, x_t)


class GaussianDiffusion:
    """The forward process on a schedule, the three predictions, the loss, and the bridge from network to sampler.

    prediction: what the network outputs, "eps" | "x0" | "v".
    min_snr_gamma: γ of Min-SNR weighting, or None for weight 1 at every timestep.
    Raises ValueError for another prediction, and for "eps" where the schedule leaves nothing of the picture at T.
    """

    def __init__(self, schedule, prediction="eps", min_snr_gamma=None):
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, not {prediction!r}")
        if prediction == "eps" and schedule.alpha_bar[-1] == 0:
            raise ValueError("at zero terminal SNR, x_T is the noise and says nothing of x_0: predict v or x0, not eps")
        self.schedule, self.prediction, self.min_snr_gamma = schedule, prediction, min_snr_gamma
        self.signal, self.noise, self.weight = schedule.signal, schedule.noise, self._weights()

    @classmethod
    def from_config(cls, config):
        """The process that a config.Diffusion describes."""
        ends = (config.beta_start, config.beta_end) if config.schedule == "linear" else ()
        with warnings.catch_warnings():
            if config.zero_terminal_snr:
                warnings.simplefilter("ignore")  # of signal left at T: it is about to be taken away
            schedule = SCHEDULES[config.schedule](config.T, *ends)
        if config.zero_terminal_snr:
            schedule = zero_terminal(schedule)
        return cls(schedule, config.prediction, config.min_snr_gamma)

    def to(self, device):
        """Move the tables to `device`, so that the training step never waits for a copy.  Returns self."""
        self.signal, self.noise, self.weight = (z.to(device) for z in (self.signal, self.noise, self.weight))
        return self

    @property
    def T(self):
        """Number of noisy levels."""
        return self.schedule.T

    # ------------------------------------------------------------------ forward: data -> noise

    def q_sample(self, x_0, t, eps):
        """A draw from q(x_t | x_0), t forward steps in one jump.  x_0, eps: (B, C, H, W); t: (B,)."""
        # x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε                                                              DDPM Eq. (4)
        return at(self.signal, t, x_0) * x_0 + at(self.noise, t, x_0) * eps

    # ------------------------------------------------------------------ three ways to say the same thing

    def target(self, x_0, eps, t):
        """What the network should output for x_t = q_sample(x_0, t, eps)."""
        if self.prediction == "eps":
            return eps
        if self.prediction == "x0":
            return x_0
        # v = √ᾱ_t ε - √(1-ᾱ_t) x_0                                              Salimans & Ho 2022, App. D
        return at(self.signal, t, x_0) * eps - at(self.noise, t, x_0) * x_0

    def to_x0_eps(self, prediction, x_t, t):
        """The network's output as (x0_hat, eps_hat), which satisfy x_t = √ᾱ_t x0_hat + √(1-ᾱ_t) eps_hat."""
        a, b = at(self.signal, t, x_t), at(self.noise, t, x_t)  # a² + b² = 1
        if self.prediction == "eps":
            # x̂_0 = (x_t - √(1-ᾱ_t) ε̂) / √ᾱ_t                                                  DDPM Eq. (15)
            return (x_t - b * prediction) / a, prediction
        if self.prediction == "x0":
            return prediction, (x_t - a * prediction) / b
        # x̂_0 = √ᾱ_t x_t - √(1-ᾱ_t) v̂,  ε̂ = √(1-ᾱ_t) x_t + √ᾱ_t v̂                    Salimans & Ho 2022, App. D
        return a * x_t - b * prediction, b * x_t + a * prediction

    # ------------------------------------------------------------------ training

    def _weights(self):
        """(T+1,) weight of the squared error at each t = 1..T; that of t = 0 is not used.

        Weight 1 on the error in ε is weight SNR on the error in x_0, so the nearly clean levels, where SNR is huge,
        count far more than the others.  γ is the most that any may count.
        """
        ab = self.schedule.alpha_bar
        if self.min_snr_gamma is None:
            return torch.ones_like(ab)
        # ‖x_0 - x̂_0‖² min(SNR, γ), written for the error that the network makes:             Min-SNR (Hang et al. 2023)
        # ‖ε - ε̂‖² = SNR ‖x_0 - x̂_0‖²,  ‖v - v̂‖² = (SNR + 1) ‖x_0 - x̂_0‖²
        snr = self.schedule.snr
        per_error = {"eps": snr, "x0": torch.ones_like(ab), "v": snr + 1}[self.prediction]
        # so ε has the weight min(1, γ/SNR), x_0 min(SNR, γ), v min(SNR, γ) / (SNR + 1)
        return snr.clamp(max=self.min_snr_gamma) / per_error

    def draw_t(self, n, device):
        """n levels to train at, (n,), each equally likely."""
        return torch.randint(1, self.T + 1, (n,), device=device)

    def loss(self, model, x_0, y=None, *, t=None, eps=None):
        """Weighted squared error of each image's prediction: (B,); L_simple where that is ε and the weights are 1.

        Where they are not given, t is drawn by `draw_t`, here uniform in 1..T, and eps ~ N(0, I).
        model: (x_t, t, y) -> prediction.  x_0: (B, C, H, W) in [-1, 1].  y: (B,) labels or None.
        """
        # Least squares ends in a mean, ε̂ = E[ε | x_t], so x̂_0 = E[x_0 | x_t] is the average of all pictures that x_t
        # may hide: one guess is a blur, hence the many steps of a sampler.  And squared error is the variational bound
        # (bound.py) in disguise: L_{t-1} = ‖μ̃_t - μ_θ‖² / 2β̃_t = ½ (SNR_{t-1} - SNR_t) ‖x_0 - x̂_0‖², and
        # ‖ε - ε̂‖² = SNR_t ‖x_0 - x̂_0‖².  So the bound weighs ‖ε - ε̂‖² by ½ (SNR_{t-1} - SNR_t) / SNR_t; L_simple by 1.
        # L_simple = E ‖ε - ε_θ(√ᾱ_t x_0 + √(1-ᾱ_t) ε, t)‖²                         DDPM Eq. (14), DDPM Alg. 1
        t = self.draw_t(len(x_0), x_0.device) if t is None else t
        eps = torch.randn_like(x_0) if eps is None else eps
        return self.weighted_error(self.ask(model, self.q_sample(x_0, t, eps), t, y), x_0, eps, t)

    def weighted_error(self, prediction, x_0, eps, t):
        """The loss of each image (B,), given what the network said about q_sample(x_0, t, eps)."""
        error = self.target(x_0, eps, t) - prediction
        # the weight is 1 unless min-SNR is on
        return entry(self.weight, t).to(x_0) * error.square().flatten(1).mean(dim=1)

    # ------------------------------------------------------------------ sampling

    def denoiser(self, model, y=None, *, guidance=1.0, clip=True) -> Denoise:
        """What the samplers call, (x_t, t) -> (x0_hat, eps_hat): ask the network, guide, convert, clip.

        y: (B,) labels, or None for the null class.  guidance: 1 = the conditional prediction, 0 = the unconditional.
        clip: keep x0_hat in [-1, 1], where the data is.
        """

        def denoise(x_t, t):
            levels = torch.full((len(x_t),), t, device=x_t.device, dtype=torch.long)
            return self.guess(self.guided(model, x_t, levels, y, guidance), x_t, t, clip)

        return denoise

    def ask(self, model, x_t, t, y):
        """The network's output for x_t, in x_t's dtype: autocast gives halves, too coarse for what follows."""
        return model(x_t, t, y).to(x_t.dtype)

    def guided(self, model, x_t, t, y, guidance):
        """The network's output with guidance: two answers, with the label and without, where one will not do."""
        if y is None or guidance == 0:
            return self.ask(model, x_t, t, None)
        if guidance == 1:
            return self.ask(model, x_t, t, y)
        null = getattr(model, "null_class", None)
        if null is None:  # a plain function: asked twice
            return self.guide(self.ask(model, x_t, t, y), self.ask(model, x_t, t, None), guidance)
        both = torch.cat([y, torch.full_like(y, null)])  # a network: both answers in one evaluation
        return self.guide(*self.ask(model, torch.cat([x_t, x_t]), t.repeat(2), both).chunk(2), guidance)

    def guide(self, conditional, unconditional, guidance):
        """Go on from the unconditional output through the conditional one.

        ε̂ is -√(1-ᾱ_t) times the score ∇ log p(x_t), see ode.py, and ∇ log p(x | y) - ∇ log p(x) = ∇ log p(y | x) by
        Bayes' rule, so ε_c - ε_u = -√(1-ᾱ_t) ∇ log p(y | x_t): to take this difference out of x_t, as noise is taken
        out, leads to where the label is more probable.  More than 1 goes further that way than the data does: clearer
        motifs, less variety.
        """
        # ε̃ = ε_u + s (ε_c - ε_u), s = w + 1; x̂_0 and v̂ are affine in ε̂, so it holds for them too     CFG Eq. (6)
        return unconditional + guidance * (conditional - unconditional)

    def guess(self, output, x_t, t, clip):
        """The network's output as what a sampler sees: (x0_hat, eps_hat)."""
        x0, eps = self.to_x0_eps(output, x_t, t)
        if clip:
            x0 = x0.clamp(-1, 1)
            # ε must follow, or x_t = √ᾱ_t x̂_0 + √(1-ᾱ_t) ε̂ no longer holds and the sampler drifts
            eps = (x_t - at(self.signal, t, x_t) * x0) / at(self.noise, t, x_t)
        return x0, eps
