"""The forward process and its algebra, against closed forms, in float64."""

import inspect
import math

import pytest
import torch
from torch.testing import assert_close

from config import Diffusion
from diffusion import variants
from diffusion.process import PREDICTIONS, GaussianDiffusion, q_posterior
from diffusion.schedule import cosine, linear, zero_terminal

SCHEDULE = linear(40, 1e-3, 0.3)


def images(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(B=6):
    x_0, eps = images(B, 3, 4, 5, seed=1), images(B, 3, 4, 5, seed=2)
    t = torch.tensor([1, 2, 7, 20, 39, 40])[:B]
    return x_0, eps, t


# ---------------------------------------------------------------- forward


def test_q_sample_is_the_closed_form():
    x_0, eps, t = batch()
    x_t = GaussianDiffusion(SCHEDULE).q_sample(x_0, t, eps)
    for i, level in enumerate(t.tolist()):
        ab = math.prod(1 - SCHEDULE.betas[s].item() for s in range(1, level + 1))
        assert_close(x_t[i], math.sqrt(ab) * x_0[i] + math.sqrt(1 - ab) * eps[i])


def test_one_jump_equals_step_by_step_noising():
    """Compose the one-step Gaussians q(x_t | x_{t-1}): mean factor and variance must be those of the jump."""
    scale, variance = 1.0, 0.0
    for t in range(1, SCHEDULE.T + 1):
        beta = SCHEDULE.betas[t].item()
        scale, variance = scale * math.sqrt(1 - beta), variance * (1 - beta) + beta  # DDPM Eq. (2)
        d = GaussianDiffusion(SCHEDULE)
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        at_t = torch.tensor([t])
        assert d.q_sample(one, at_t, 0 * one).item() == pytest.approx(scale, rel=1e-12)
        assert d.q_sample(0 * one, at_t, one).item() ** 2 == pytest.approx(variance, rel=1e-12)


def test_tables_keep_float64_precision_near_the_data():
    """In float32, 1 - alpha_bar at t = 1 would be off by more than 1e-5 of itself."""
    d = GaussianDiffusion(linear())
    one = torch.ones(1, 1, 1, 1)
    got = d.q_sample(0 * one, torch.tensor([1]), one).item()
    assert got == pytest.approx(math.sqrt(1e-4), rel=1e-6)
    assert d.q_sample(one, torch.tensor([1]), one).dtype == torch.float32


# ---------------------------------------------------------------- posterior


@pytest.mark.parametrize(("t", "s"), [(1, 0), (2, 1), (40, 39), (40, 1), (23, 7), (40, 0)])
def test_q_posterior_is_bayes_rule(t, s):
    """Multiply the Gaussians q(x_s | x_0) and q(x_t | x_s) by hand: precisions add, means are weighted by them."""
    x_0, x_t = images(2, 3, 4, 4, seed=3), images(2, 3, 4, 4, seed=4)
    mean, variance = q_posterior(SCHEDULE, x_0, x_t, t, s)
    ab = SCHEDULE.alpha_bar
    if s == 0:
        assert_close(mean, x_0)
        assert variance == 0
        return
    alpha, beta = (ab[t] / ab[s]).item(), (1 - ab[t] / ab[s]).item()
    prior_precision, likelihood_precision = 1 / (1 - ab[s].item()), alpha / beta
    by_hand = 1 / (prior_precision + likelihood_precision)
    assert variance.item() == pytest.approx(by_hand, rel=1e-12)
    prior_mean, observed = math.sqrt(ab[s]) * x_0, x_t / math.sqrt(alpha)
    assert_close(mean, by_hand * (prior_precision * prior_mean + likelihood_precision * observed))


def test_q_posterior_takes_one_level_an_image():
    x_0, x_t = images(3, 3, 4, 4, seed=3), images(3, 3, 4, 4, seed=4)
    t, s = torch.tensor([5, 20, 40]), torch.tensor([4, 3, 0])
    mean, variance = q_posterior(SCHEDULE, x_0, x_t, t, s)
    for i in range(3):
        m, v = q_posterior(SCHEDULE, x_0[i : i + 1], x_t[i : i + 1], t[i].item(), s[i].item())
        assert_close(mean[i : i + 1], m)
        assert_close(variance[i].item(), v.item())


def test_posterior_variance_is_never_above_beta():
    x = images(1, 1, 1, 1)
    for t in range(2, SCHEDULE.T + 1):
        _, variance = q_posterior(SCHEDULE, x, x, t, t - 1)
        assert 0 < variance < SCHEDULE.betas[t]


# ---------------------------------------------------------------- three predictions, one trajectory


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_converts_back_to_x0_and_eps(prediction):
    x_0, eps, t = batch()
    d = GaussianDiffusion(SCHEDULE, prediction)
    x0_hat, eps_hat = d.to_x0_eps(d.target(x_0, eps, t), d.q_sample(x_0, t, eps), t)
    assert_close(x0_hat, x_0)
    assert_close(eps_hat, eps)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_any_output_gives_a_consistent_pair(prediction):
    """x_t = sqrt(ab) x0_hat + sqrt(1-ab) eps_hat whatever the network says, for a tensor t and for an int t."""
    d = GaussianDiffusion(SCHEDULE, prediction)
    x_t, output = images(6, 3, 4, 5, seed=5), images(6, 3, 4, 5, seed=6)
    _, _, t = batch()
    x0, eps = d.to_x0_eps(output, x_t, t)
    assert_close(d.q_sample(x0, t, eps), x_t)
    x0, eps = d.to_x0_eps(output, x_t, 7)
    assert_close(d.q_sample(x0, torch.full((6,), 7), eps), x_t)


def test_v_is_the_velocity_of_the_rotation():
    """With angle phi, x = cos(phi) x_0 + sin(phi) eps; v must be dx/dphi."""
    x_0, eps, _ = batch()
    d, t = GaussianDiffusion(SCHEDULE, "v"), torch.full((6,), 20)
    phi = math.acos(math.sqrt(SCHEDULE.alpha_bar[20]))
    h = 1e-6
    x = [math.cos(p) * x_0 + math.sin(p) * eps for p in (phi - h, phi + h)]
    assert_close(d.target(x_0, eps, t), (x[1] - x[0]) / (2 * h), rtol=1e-6, atol=1e-8)


def test_a_config_becomes_the_process_that_it_describes():
    linearly = Diffusion(T=30, beta_start=0.01, beta_end=0.4, prediction="x0", min_snr_gamma=5.0)
    evenly = Diffusion(T=30, schedule="cosine", prediction="v", zero_terminal_snr=True)
    for config, expected in (
        (linearly, GaussianDiffusion(linear(30, 0.01, 0.4), "x0", 5.0)),
        (evenly, GaussianDiffusion(zero_terminal(cosine(30)), "v")),
    ):
        found = GaussianDiffusion.from_config(config)
        assert found.prediction == expected.prediction
        assert torch.equal(found.schedule.alpha_bar, expected.schedule.alpha_bar)
        assert torch.equal(found.weight, expected.weight)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="eps, x0, v"):
        GaussianDiffusion(SCHEDULE, "noise")


# ---------------------------------------------------------------- loss


def test_the_loss_of_a_silent_network_is_the_mean_square_of_eps():
    x_0, eps, t = batch()
    loss = GaussianDiffusion(SCHEDULE).loss(lambda x, t, y: 0 * x, x_0, t=t, eps=eps)
    assert loss.shape == (6,)
    assert_close(loss, eps.square().mean(dim=(1, 2, 3)))


def test_the_loss_shows_the_network_x_t_t_and_y():
    x_0, eps, t = batch()
    seen = {}
    d = GaussianDiffusion(SCHEDULE)

    def model(x, t, y):
        seen.update(x=x, t=t, y=y)
        return eps

    y = torch.arange(6)
    assert_close(d.loss(model, x_0, y, t=t, eps=eps), torch.zeros(6, dtype=torch.float64))
    assert_close(seen["x"], d.q_sample(x_0, t, eps))
    assert seen["t"] is t and seen["y"] is y


def test_t_is_drawn_uniformly_from_1_to_T():
    drawn = []
    d = GaussianDiffusion(linear(5, 0.5, 0.9))
    torch.manual_seed(0)
    d.loss(lambda x, t, y: drawn.append(t) or x, torch.zeros(5000, 1, 1, 1))
    counts = torch.bincount(drawn[0], minlength=6)
    assert len(counts) == 6 and counts[0] == 0
    assert (counts[1:] > 850).all()


@pytest.mark.parametrize("process", variants.PROCESSES)
def test_where_nothing_is_given_the_loss_draws_the_levels_and_then_the_noise(process):
    d, x_0 = variants.from_config(Diffusion(process=process, T=1000)), images(4, 2, 3, 3)
    network = lambda x, t, y: torch.cat([x, x.cos()], 1) if process == "learned_variance" else x.sin()  # noqa: E731
    torch.manual_seed(0)
    drawn = d.loss(network, x_0)
    torch.manual_seed(0)
    t = d.draw_t(4, "cpu")
    assert_close(drawn, d.loss(network, x_0, t=t, eps=torch.randn_like(x_0)), rtol=0, atol=0)


@pytest.mark.parametrize("process", variants.PROCESSES.values())
def test_every_process_is_called_alike_and_has_the_same_defaults(process):
    """Or the pictures would change, by clipping for one, with the program that asks."""
    for name in ("loss", "denoiser"):
        own, base = (inspect.signature(getattr(cls, name)).parameters for cls in (process, GaussianDiffusion))
        assert own == base


@pytest.mark.parametrize("gamma", [None, 0.5, 5.0, 1e9])
def test_min_snr_is_one_loss_in_all_three_predictions(gamma):
    """The same x0_hat, spoken as eps, x0 or v, must cost the same: min(SNR, gamma) |x_0 - x0_hat|^2."""
    x_0, eps, t = batch()
    x0_hat = images(6, 3, 4, 5, seed=9)
    losses = {}
    for prediction in PREDICTIONS:
        d = GaussianDiffusion(SCHEDULE, prediction, gamma)
        ab = SCHEDULE.alpha_bar[t].view(-1, 1, 1, 1)
        eps_hat = (d.q_sample(x_0, t, eps) - ab.sqrt() * x0_hat) / (1 - ab).sqrt()
        said = {"eps": eps_hat, "x0": x0_hat, "v": ab.sqrt() * eps_hat - (1 - ab).sqrt() * x0_hat}[prediction]
        losses[prediction] = d.loss(lambda x, t, y, said=said: said, x_0, t=t, eps=eps)
    error = (x_0 - x0_hat).square().mean(dim=(1, 2, 3))
    snr = SCHEDULE.snr[t]
    if gamma is None:
        assert_close(losses["x0"], error)
        assert_close(losses["eps"], snr * error)
        assert_close(losses["v"], (snr + 1) * error)
    else:
        for prediction in PREDICTIONS:
            assert_close(losses[prediction], snr.clamp(max=gamma) * error)


# ---------------------------------------------------------------- denoiser


def test_clipping_keeps_x0_in_range_and_rederives_eps():
    d = GaussianDiffusion(SCHEDULE)
    x_t = 3 * images(2, 3, 4, 4)
    x0, eps = d.denoiser(lambda x, t, y: 0 * x)(x_t, 20)
    raw, _ = d.denoiser(lambda x, t, y: 0 * x, clip=False)(x_t, 20)
    assert raw.abs().max() > 1 and x0.abs().max() == 1
    assert_close(x0, raw.clamp(-1, 1))
    assert_close(d.q_sample(x0, torch.full((2,), 20), eps), x_t)


def test_the_denoiser_gives_the_network_a_batch_of_t():
    seen = []
    d = GaussianDiffusion(SCHEDULE)
    d.denoiser(lambda x, t, y: seen.append((t, y)) or x)(images(3, 1, 2, 2), 17)
    assert seen[0][0].tolist() == [17, 17, 17] and seen[0][1] is None


class Labelled:
    """A network whose output names the label it saw: 10 for the null class, else the label."""

    def __init__(self, null_class=None):
        self.calls = 0
        if null_class is not None:
            self.null_class = null_class

    def __call__(self, x, t, y):
        self.calls += 1
        if y is None:
            return torch.full_like(x, 10)
        y = torch.where(y == getattr(self, "null_class", -1), 10, y)
        return y.to(x).view(-1, 1, 1, 1).expand_as(x)


@pytest.mark.parametrize("null_class", [None, 5])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_guidance_extrapolates_from_unconditional_to_conditional(prediction, null_class):
    d = GaussianDiffusion(SCHEDULE, prediction)
    x_t, y = images(3, 1, 2, 2), torch.tensor([1, 2, 3])
    one, zero = torch.ones(3, 1, 2, 2, dtype=torch.float64), torch.full((3, 1, 2, 2), 10.0, dtype=torch.float64)
    _, eps_c = d.to_x0_eps(y.view(-1, 1, 1, 1) * one, x_t, 20)
    _, eps_u = d.to_x0_eps(zero, x_t, 20)
    for s in (0.0, 0.5, 1.0, 3.0):
        _, eps = d.denoiser(Labelled(null_class), y, guidance=s, clip=False)(x_t, 20)
        assert_close(eps, eps_u + s * (eps_c - eps_u))


def test_guidance_one_and_zero_are_exact_and_cost_one_evaluation():
    d, x_t, y = GaussianDiffusion(SCHEDULE), images(3, 1, 2, 2), torch.tensor([1, 2, 3])
    for s, labels in ((1, y), (0, None)):
        network = Labelled()
        got = d.denoiser(network, y, guidance=s, clip=False)(x_t, 20)
        assert network.calls == 1
        wanted = d.to_x0_eps(Labelled()(x_t, None, labels), x_t, 20)
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])


@pytest.mark.parametrize("process", variants.PROCESSES)
@pytest.mark.parametrize("guidance", [0.5, 3.0])
def test_both_halves_of_guidance_see_the_same_pictures_at_the_same_level(process, guidance):
    """One evaluation of a network with a null class is two of a function without; and all defaults are as they say."""

    def function(x, t, y):
        label = torch.full_like(t, 5) if y is None else y
        said = 0.02 * ((label + 1).view(-1, 1, 1, 1) * x + t.view(-1, 1, 1, 1))  # so small that nothing is clipped
        return torch.cat([said, x], dim=1) if process == "learned_variance" else said

    class Network:
        null_class = 5

        def __call__(self, x, t, y):
            return function(x, t, y)

    d = variants.from_config(Diffusion(process=process, T=40, schedule="cosine"))
    x_t, y = images(3, 1, 2, 2), torch.tensor([1, 2, 3])
    for one, two in zip(*(d.denoiser(f, y, guidance=guidance)(x_t, 20) for f in (Network(), function))):
        assert_close(one, two)
    for default, given in zip(
        d.denoiser(function, y)(x_t, 20), d.denoiser(function, y, guidance=1.0, clip=True)(x_t, 20)
    ):
        assert torch.equal(default, given)


def test_both_halves_of_guidance_are_one_evaluation():
    network = Labelled(null_class=5)
    GaussianDiffusion(SCHEDULE).denoiser(network, torch.tensor([1]), guidance=2.0)(images(1, 1, 2, 2), 20)
    assert network.calls == 1


def test_float64_goes_through_in_float64():
    d = GaussianDiffusion(cosine(10), "v", 5.0)
    x = images(2, 1, 2, 2)
    assert d.loss(lambda x, t, y: x, x).dtype == torch.float64
    assert all(z.dtype == torch.float64 for z in d.denoiser(lambda x, t, y: x)(x, 3))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.3])
def test_a_network_in_half_precision_is_guided_and_clipped_in_the_precision_of_the_picture(prediction, guidance):
    d, x, y = GaussianDiffusion(SCHEDULE, prediction), images(3, 1, 2, 2).float(), torch.tensor([0, 1, 2])
    fine = Labelled(null_class=5)
    half = lambda x, t, y: fine(x, t, y).bfloat16()  # noqa: E731 - its outputs, small whole numbers, are exact in it
    half.null_class = 5
    for a, b in zip(d.denoiser(half, y, guidance=guidance)(x, 20), d.denoiser(fine, y, guidance=guidance)(x, 20)):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_zero_terminal_snr_is_refused_with_eps_and_finite_with_v_and_x0():
    schedule = zero_terminal(SCHEDULE)
    with pytest.raises(ValueError, match="predict v or x0"):
        GaussianDiffusion(schedule, "eps")
    for prediction in ("v", "x0"):
        for gamma in (None, 5.0):
            d = GaussianDiffusion(schedule, prediction, gamma)
            x = images(2, 1, 2, 2)
            x0, eps = d.denoiser(lambda x, t, y: 0.5 * x)(x, schedule.T)
            assert torch.isfinite(x0).all() and torch.isfinite(eps).all()
            assert torch.isfinite(d.loss(lambda x, t, y: x, x, t=torch.tensor([40, 40]), eps=x)).all()
