"""A variance that the network says: between DDPM's two, taught by the bound, used by ddpm.  And a run of it."""

import pytest
import torch
from oracles import MU, STD, normal, seeded
from torch.testing import assert_close

import config
from diffusion import bound, variants
from diffusion.learned_variance import LAMBDA, Guess, LearnedVariance, mix_of
from diffusion.process import GaussianDiffusion, q_posterior
from diffusion.samplers import SAMPLERS, ddpm
from diffusion.schedule import cosine, linear, zero_terminal
from diffusion.steps import spaced
from models.unet import UNet

T = 40
SCHEDULE = linear(T, 1e-3, 0.3)


def pixels(*shape, seed=0):
    """Pictures of 256 grey levels."""
    return ((normal(*shape, seed=seed) * STD + MU).clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1


def saying(output, prediction=lambda x, t: x.sin() + t.view(-1, 1, 1, 1) / T):
    """A network: some prediction, and this second half."""
    return lambda x, t, y: torch.cat([prediction(x, t), torch.full_like(x, output)], dim=1)


def beta(t, s):
    return 1 - SCHEDULE.alpha_bar[t] / SCHEDULE.alpha_bar[s]


def small(t, s):
    return q_posterior(SCHEDULE, normal(1), normal(1), t, s)[1]


# ---------------------------------------------------------------- the variance


@pytest.mark.parametrize(("t", "s"), [(2, 1), (17, 16), (40, 39), (40, 1), (25, 3)])
def test_the_ends_are_ddpms_two_variances_and_the_middle_their_geometric_mean(t, s):
    def variance(mix):
        return Guess(*normal(2, 2), torch.full((2,), mix, dtype=torch.float64), SCHEDULE).variance(t, s)[0]

    assert_close(variance(1.0), beta(t, s), rtol=1e-12, atol=0)
    assert_close(variance(0.0), small(t, s), rtol=1e-12, atol=0)
    assert_close(variance(0.5), (beta(t, s) * small(t, s)).sqrt(), rtol=1e-12, atol=0)


def test_the_last_step_takes_the_small_variance_of_the_one_before():
    """β̃_1 = 0 has no logarithm."""
    mix = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = Guess(mix, mix, mix, SCHEDULE).variance(1, 0)
    assert_close(found, torch.stack([small(2, 1), SCHEDULE.betas[1]]), rtol=1e-12, atol=0)


def test_levels_can_differ_from_image_to_image():
    t, mix = torch.tensor([1, 2, 40]), normal(3, 1, 2, 2)
    found = Guess(mix, mix, mix, SCHEDULE).variance(t, t - 1)
    for i, level in enumerate(t.tolist()):
        assert_close(found[i], Guess(mix[i], mix[i], mix[i], SCHEDULE).variance(level, level - 1))


def test_a_guess_is_a_pair_for_those_who_do_not_ask():
    x0, eps, mix = normal(3, 2)
    guess = Guess(x0, eps, mix, SCHEDULE)
    a, b = guess
    assert a is x0 and b is eps and guess[0] is x0 and len(guess) == 2
    single = guess.to(torch.float32)
    assert [z.dtype for z in (*single, single.mix)] == [torch.float32] * 3
    assert_close(single.variance(9, 8), guess.variance(9, 8).float())


def test_zero_in_the_second_half_is_the_middle():
    assert mix_of(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0.0, 0.5, 1.0]


# ---------------------------------------------------------------- the loss


def batch():
    """Pictures, noise and levels, L_0's among them."""
    return pixels(4, 1, 3, 3), normal(4, 1, 3, 3, seed=1), torch.tensor([1, 2, 17, 40])


def hybrid(d, output, prediction=lambda x, t: x.sin()):
    x_0, eps, t = batch()
    return d.loss(lambda *_: torch.cat([prediction, output], 1), x_0, t=t, eps=eps)


@pytest.mark.parametrize("schedule", [SCHEDULE, cosine(40)], ids=["linear", "cosine"])
@pytest.mark.parametrize(("prediction", "gamma"), [("eps", None), ("x0", None), ("v", 5.0)])
def test_the_loss_is_the_simple_one_and_the_term_of_the_bound_at_each_t(prediction, gamma, schedule):
    d, plain = (cls(schedule, prediction, gamma) for cls in (LearnedVariance, GaussianDiffusion))
    (x_0, eps, t), said, output = batch(), normal(4, 1, 3, 3, seed=2), normal(4, 1, 3, 3, seed=3)
    terms = []
    for i, level in enumerate(t.tolist()):
        one = slice(i, i + 1)
        x_t = plain.q_sample(x_0[one], t[one], eps[one])
        guess = Guess(*plain.to_x0_eps(said[one], x_t, level), (output[one] + 1) / 2, schedule)
        denoise = lambda x, t, guess=guess: guess  # noqa: E731
        if level == 1:
            nats = bound.decoder_term(schedule, denoise, x_0[one], x_t, "learned")
        else:
            nats = bound.step_term(schedule, denoise, x_0[one], x_t, level, "learned")
        terms.append(bound.in_bits(nats, x_0))
    simple = plain.loss(lambda *_: said, x_0, t=t, eps=eps)
    assert LAMBDA == 0.001  # as in the paper
    assert_close(hybrid(d, output, said), simple + LAMBDA * 40 * torch.cat(terms))


@pytest.mark.parametrize(("output", "variance"), [(-1.0, "small"), (1.0, "large")])
def test_with_ddpms_variances_the_bound_is_ddpms(output, variance):
    d, x_0 = LearnedVariance(SCHEDULE, "v"), pixels(2, 1, 4, 4)
    learned, plain = (
        list(bound.bound(denoise, SCHEDULE, x_0, seeded(), lambda a, b: a, T, which))
        for denoise, which in (
            (d.denoiser(saying(output)), "learned"),
            (GaussianDiffusion(SCHEDULE, "v").denoiser(lambda x, t, y: saying(output)(x, t, y)[:, :1]), variance),
        )
    )
    # L_0 is left out for "small": there, one takes β_1 and the other β̃_2
    for a, b in list(zip(learned, plain))[variance == "small" :]:
        assert_close(a, b)


def test_the_bound_teaches_the_variance_and_the_simple_loss_the_mean():
    x_0, eps, t = batch()
    halves = [normal(4, 1, 3, 3, seed=2).requires_grad_(), normal(4, 1, 3, 3, seed=3).requires_grad_()]
    hybrid(LearnedVariance(SCHEDULE, "v"), halves[1], halves[0]).sum().backward()
    found, alone = halves[0].grad.clone(), halves[0].detach().requires_grad_()
    GaussianDiffusion(SCHEDULE, "v").loss(lambda *_: alone, x_0, t=t, eps=eps).sum().backward()
    assert_close(found, alone.grad)
    assert (halves[1].grad != 0).all()


@pytest.mark.parametrize("t", [2, 5, 17, 40])
def test_the_best_variance_for_gaussian_data_is_that_of_the_true_reverse_step(t):
    """With a perfect mean, q(x_{t-1} | x_t) of N(MU, STD²) has β̃_t and what x_0 itself is uncertain by.

    The bound is quadratic in x_0, so its mean over x_0 given x_t is that over two points, a deviation to each side.
    """
    ab = SCHEDULE.alpha_bar[t]
    left = STD**2 * (1 - ab) / (ab * STD**2 + 1 - ab)  # Var(x_0 | x_t)
    x_t = normal(2, 1, 3, 3)
    mean = MU + ab.sqrt() * STD**2 / (ab * STD**2 + 1 - ab) * (x_t - ab.sqrt() * MU)
    of_x_0 = SCHEDULE.alpha_bar[t - 1].sqrt() * beta(t, t - 1) / (1 - ab)
    true = small(t, t - 1) + of_x_0**2 * left
    best = (true / small(t, t - 1)).log() / (beta(t, t - 1) / small(t, t - 1)).log()
    assert 0 < best < 1

    def slope(mix):
        d, mix = LearnedVariance(SCHEDULE), torch.full_like(x_t, mix).requires_grad_()
        guess, levels = Guess(mean, mean, mix, SCHEDULE), torch.full((2,), t)
        terms = [d.vlb_term(guess, mean + side * left.sqrt(), x_t, levels).mean() for side in (-1, 1)]
        return torch.autograd.grad(sum(terms), mix)[0].sum().item()

    scale = abs(slope(0.0))
    assert abs(slope(best.item())) < 1e-9 * scale
    assert slope(best.item() - 0.02) < 0 < slope(best.item() + 0.02)


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [(linear(), "v"), (cosine(), "v"), (zero_terminal(cosine()), "v"), (linear(4000), "eps")],
    ids=["linear", "cosine", "zero", "next to no signal and eps"],
)
def test_the_loss_and_its_gradients_are_finite_at_every_level_in_float32(schedule, prediction):
    x_0 = pixels(schedule.T, 1, 2, 2).float()
    for size in (0.0, 1.0, 10.0):  # an untrained network, one that works, and one that has gone wild
        output = (size * normal(schedule.T, 2, 2, 2, seed=5)).float().requires_grad_()
        t = torch.arange(1, schedule.T + 1)
        loss = LearnedVariance(schedule, prediction).loss(lambda *_, output=output: output, x_0, t=t)
        assert loss.dtype == torch.float32 and torch.isfinite(loss).all()
        assert torch.isfinite(torch.autograd.grad(loss.sum(), output)[0]).all()


def test_the_term_of_float32_pictures_is_that_of_the_same_numbers_in_float64():
    """Where two means nearly agree, float32 would keep two digits of their distance."""
    d, t, output = LearnedVariance(linear(), "v"), torch.tensor([1, 2, 500, 987]), normal(4, 2, 3, 3, seed=2).float()
    x_0, x_t = pixels(4, 1, 3, 3).float(), normal(4, 1, 3, 3, seed=1).float()
    guess = Guess(*d.to_x0_eps(output[:, :1], x_t, t), mix_of(output[:, 1:]), d.schedule)
    exact = d.vlb_term(guess.to(torch.float64), x_0.double(), x_t.double(), t)
    assert_close(d.vlb_term(guess, x_0, x_t, t), exact, rtol=0, atol=0)


def test_one_level_is_refused():
    with pytest.raises(ValueError, match="at least 2 levels"):
        LearnedVariance(linear(1, 0.999, 0.999))


def test_two_levels_are_enough():
    (x_0, eps, _), said = batch(), normal(4, 2, 3, 3, seed=2)
    loss = LearnedVariance(linear(2, 0.9, 0.99)).loss(lambda *_: said, x_0, t=torch.tensor([1, 2, 1, 2]), eps=eps)
    assert torch.isfinite(loss).all()


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize("levels", [None, spaced(T, 7), [1], [40]])
@pytest.mark.parametrize(("output", "variance"), [(-1.0, "small"), (1.0, "large")])
def test_sampling_with_ddpms_variances_is_ddpm_image_for_image(output, variance, levels):
    denoise = LearnedVariance(SCHEDULE, "v").denoiser(saying(output))
    walks = (
        ddpm(denoise, SCHEDULE, normal(2, 1, 3, 3), timesteps=levels, variance=which, noise_like=seeded())
        for which in ("learned", variance)
    )
    for learned, plain in zip(*walks, strict=True):
        assert_close(learned.x, plain.x)


def test_the_noise_of_a_step_has_the_learned_deviation_pixel_by_pixel():
    mix = normal(1, 1, 2, 2, seed=4)
    network = lambda x, t, y: torch.cat([0 * x, (2 * mix - 1).expand(x.shape)], dim=1)  # noqa: E731
    denoise = LearnedVariance(SCHEDULE, "x0").denoiser(network)

    def step(z):
        x, draw = normal(1, 1, 2, 2), lambda x: z
        return next(ddpm(denoise, SCHEDULE, x, timesteps=[30, 12], variance="learned", noise_like=draw)).x

    noise = step(torch.ones(1, dtype=torch.float64)) - step(torch.zeros(1, dtype=torch.float64))
    log_variance = mix * beta(30, 12).log() + (1 - mix) * small(30, 12).log()
    assert_close(noise, (log_variance / 2).exp())


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_other_sampler_takes_the_pair_and_ignores_the_variance(name):
    plain = GaussianDiffusion(SCHEDULE, "v").denoiser(lambda x, t, y: saying(0.0)(x, t, y)[:, :1])
    ends = [
        list(SAMPLERS[name](denoise, SCHEDULE, normal(2, 1, 3, 3), timesteps=spaced(T, 5), noise_like=seeded()))[-1].x
        for denoise in (plain, LearnedVariance(SCHEDULE, "v").denoiser(saying(7.0)))
    ]
    assert_close(*ends, rtol=0, atol=0)


@pytest.mark.parametrize("null_class", [None, 5])
def test_guidance_moves_the_mean_and_takes_the_variance_of_the_label(null_class):
    sizes = []

    class Network:
        def __call__(self, x, t, y):
            sizes.append(len(x))
            label = (torch.full((len(x),), 5) if y is None else y).view(-1, 1, 1, 1).to(x)
            return torch.cat([x * label, x + label], dim=1)

    network, x_t, y = Network(), normal(2, 1, 3, 3), torch.tensor([1, 2])
    if null_class is not None:
        network.null_class = null_class
    denoise = LearnedVariance(SCHEDULE, "x0").denoiser(network, y, guidance=3.0, clip=False)
    label = y.view(-1, 1, 1, 1).double()
    for x in (x_t + 1, x_t):  # the second call knows nothing of the first
        guess = denoise(x, 9)
        assert_close(guess[0], x * (5 + 3 * (label - 5)))
        assert_close(guess.mix, (x + label + 1) / 2)
    assert sizes == ([2] * 4 if null_class is None else [4] * 2)


def test_half_precision_stops_at_the_networks_output():
    def network(x, t, y):
        return torch.cat([x, x], dim=1).bfloat16()

    x_t = normal(2, 1, 3, 3).float()
    guess = LearnedVariance(SCHEDULE, "x0").denoiser(network)(x_t, 9)
    assert guess.variance(9, 8).dtype == torch.float32
    exact = LearnedVariance(SCHEDULE, "x0").denoiser(lambda *a: network(*a).float())(x_t, 9)
    assert_close(guess.variance(9, 8), exact.variance(9, 8), rtol=1e-6, atol=0)


def test_a_network_without_a_variance_is_refused_in_one_line():
    denoise = GaussianDiffusion(SCHEDULE).denoiser(lambda x, t, y: x)
    with pytest.raises(ValueError, match=r"train one with --diffusion\.process learned_variance"):
        next(ddpm(denoise, SCHEDULE, normal(1, 1, 2, 2), variance="learned"))
    with pytest.raises(ValueError, match=r"train one with --diffusion\.process learned_variance"):
        bound.step_term(SCHEDULE, denoise, normal(1, 1, 2, 2), normal(1, 1, 2, 2), 5, "learned")


# ---------------------------------------------------------------- the network, and through the programs


def test_the_network_has_as_many_more_outputs_and_is_otherwise_the_same():
    small_config = config.Model(8, (1, 2), 1, attention_resolutions=(), heads=2, dropout=0.0, patch=2)
    one, two = UNet(small_config), UNet(small_config, out_channels=6)
    shapes = [{k: tuple(v.shape) for k, v in net.state_dict().items()} for net in (one, two)]
    assert {k for k in shapes[0] if shapes[0][k] != shapes[1][k]} == {"head.weight", "head.bias"}
    assert two(torch.zeros(1, 3, 8, 8), torch.tensor([1])).shape == (1, 6, 8, 8)
    for process, channels in (("gaussian", 3), ("edm", 3), ("learned_variance", 6)):
        diffusion = config.Diffusion(process=process)
        assert config.out_channels(config.Config(diffusion=diffusion)) == channels


RUN = ("--preset", "smoke", "--diffusion.process", "learned_variance", "--diffusion.prediction", "v")


def test_a_run_trains_resumes_bit_for_bit_and_samples(program, whole_equals_halves, tmp_path):
    found = whole_equals_halves(*RUN)
    d = variants.from_config(found.diffusion)
    assert isinstance(d, LearnedVariance) and d.prediction == "v"
    shots = []
    for argv in (["--variance", "learned"], ["--variance", "small"]):
        code, out, err = program("generate", "ddpm", *argv, "-n", 2, "--steps", 6, "--ckpt", "ckpt/whole")
        assert code == 0 and "2 pictures" in out, err
        shots.append((tmp_path / "out/ddpm/00000.png").read_bytes())
    assert shots[0] != shots[1]
    for program_name, *argv in (
        ("generate", "heun", "--label", "zigzag", "--guidance", 2, "--steps", 3, "-n", 1),
        ("evaluate", "bpd", "-n", 2, "--levels", 3, "--variance", "learned"),
        ("edit", "inpaint", "-n", 1, "--steps", 3, "--resamples", 2),
    ):
        code, _, err = program(program_name, *argv, "--ckpt", "ckpt/whole")
        assert code == 0, err
    assert program("explore", "samplers", "-n", 1, "--steps", 2, "--ckpt", "ckpt/whole/best.pth")[0] == 0


@pytest.mark.parametrize("argv", [("generate", "ddpm"), ("evaluate", "bpd")])
def test_a_checkpoint_without_a_variance_is_refused_in_one_line(program, run_folder, argv):
    code, _, err = program(*argv, "-n", 2, "--variance", "learned", "--ckpt", run_folder)
    assert code == 2 and err.count("\n") == 1 and "--diffusion.process learned_variance" in err and "best.pth" in err


def test_settings_that_cannot_work_are_refused(program):
    code, _, err = program("main", *RUN, "--diffusion.T", 1, "--sample.steps", 1)
    assert code == 2 and "--diffusion.T 1: expected at least 2" in err
