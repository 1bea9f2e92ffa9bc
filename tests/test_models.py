"""The networks: sizes from the papers, closed forms for each part."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from config import PRESETS, Model, size_multiple
from diffusion.process import GaussianDiffusion
from diffusion.schedule import linear
from models.attention import Attention, linear_attention, phi
from models.blocks import ResBlock, Upsample, group_norm
from models.embedding import sinusoidal
from models.unet import Block, UNet

TINY = Model(
    16,
    (1, 2, 2),
    2,
    attention_resolutions=(8,),
    linear_attention_resolutions=(16,),
    heads=2,
    dropout=0.0,
    num_classes=3,
)


def count(config, channels=3, size=(32, 32)):
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(config, channels, size).parameters())


def waken(model):
    """Give the zero-initialised layers random weights, as after some training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.1)
    return model


# ---------------------------------------------------------------- sizes


def test_the_papers_cifar10_network_has_exactly_35746307_parameters():
    assert count(PRESETS["cifar10"].model) == count(Model()) == 35_746_307


@pytest.mark.parametrize(
    ("preset", "millions"), [("cifar10-cars", 61), ("stanford-cars", 54), ("fabrics", 35), ("pokemon", 114)]
)
def test_the_reference_systems_have_their_size_within_3_percent(preset, millions):
    config = PRESETS[preset]
    assert count(config.model, config.data.channels, config.data.size) == pytest.approx(millions * 1e6, rel=0.03)


# ---------------------------------------------------------------- the whole network


def test_every_resblock_and_every_attention_is_as_the_config_says():
    parts = list(UNet(replace(TINY, dropout=0.3, scale_shift=True), 3, (16, 16)).modules())
    assert {(part.dropout.p, part.scale_shift) for part in parts if isinstance(part, ResBlock)} == {(0.3, True)}
    assert {part.heads for part in parts if isinstance(part, Attention)} == {2}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(16, 16), (16, 24), (32, 8)])
@pytest.mark.parametrize("patch", [1, 2])
def test_the_output_has_the_shape_of_the_input(channels, size, patch):
    model = waken(UNet(replace(TINY, patch=patch), channels, size))
    out = model(torch.randn(2, channels, *size), torch.tensor([1, 900]), torch.tensor([0, 2]))
    assert out.shape == (2, channels, *size) and torch.isfinite(out).all() and out.abs().sum() > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_the_output_is_zero_at_first_so_the_eps_loss_is_the_mean_square_of_eps(preset):
    config = PRESETS[preset]
    small = replace(config.model, channels=16, heads=min(config.model.heads, 4))  # the same layout, narrower
    model = UNet(small, config.data.channels, config.data.size)
    x_0, eps = torch.randn(2, 3, *config.data.size), torch.randn(2, 3, *config.data.size)
    t = torch.tensor([3, 500])
    assert torch.count_nonzero(model(x_0, t)) == 0
    loss = GaussianDiffusion(linear()).loss(model, x_0, t=t, eps=eps)
    assert torch.equal(loss, eps.square().flatten(1).mean(1))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_receives_a_gradient(preset):
    """After two steps: in the first, the zero-initialised layers hide what is behind them."""
    config = PRESETS[preset]
    torch.manual_seed(0)
    small = replace(config.model, channels=16, heads=min(config.model.heads, 4), dropout=0.0)
    model = UNet(small, 3, (32, 32))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    y = torch.tensor([0, small.num_classes - 1, small.num_classes, 1]) if small.num_classes else None
    for _ in range(3):
        optimizer.zero_grad()
        loss = (
            model(torch.randn(4, 3, 32, 32), torch.tensor([1, 20, 500, 999]), y) - torch.randn(4, 3, 32, 32)
        ).square()
        loss.mean().backward()
        optimizer.step()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_the_output_depends_on_t_and_on_y():
    model, x = waken(UNet(TINY, 3, (16, 16))), torch.randn(1, 3, 16, 16)

    def run(t, y):
        return model(x, torch.tensor([t]), None if y is None else torch.tensor([y]))

    assert (run(5, 0) - run(6, 0)).abs().max() > 1e-6
    assert (run(5, 0) - run(5, 1)).abs().max() > 1e-6


def test_no_label_is_the_null_class():
    model, x, t = waken(UNet(TINY, 3, (16, 16))), torch.randn(2, 3, 16, 16), torch.tensor([4, 70])
    assert torch.equal(model(x, t), model(x, t, torch.tensor([3, 3])))
    assert (model(x, t) - model(x, t, torch.tensor([2, 2]))).abs().max() > 1e-6


def test_each_image_is_processed_by_itself():
    model, x = waken(UNet(TINY, 3, (16, 16))), torch.randn(3, 3, 16, 16)
    t, y = torch.tensor([1, 50, 900]), torch.tensor([0, 1, 2])
    together = model(x, t, y)
    for i in range(3):
        assert_close(model(x[i : i + 1], t[i : i + 1], y[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)


def test_every_skip_reaches_the_output():
    """Silence one encoder map after the other: the output must change each time, or a skip was dropped."""
    model, x, t = waken(UNet(TINY, 3, (16, 16))), torch.randn(1, 3, 16, 16), torch.tensor([5])
    seen = []  # (channels, resolution) of each map that the decoder concatenates
    real = torch.cat

    def spy(tensors, dim):
        seen.append(tensors[1])
        return real(tensors, dim=dim)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(
            torch,
            "cat",
            lambda tensors, dim=0: spy(tensors, dim) if dim == 1 and tensors[0].ndim == 4 else real(tensors, dim=dim),
        )
        before = model(x, t)
        maps = list(seen)
        assert len(maps) == 9 == len({z.data_ptr() for z in maps})  # 3 levels x (2 blocks + 1), each used once
        for k in range(9):
            seen.clear()

            def silence(tensors, dim=0, k=k):
                if dim != 1 or tensors[0].ndim != 4:
                    return real(tensors, dim=dim)
                seen.append(0)
                return real([tensors[0], tensors[1] * (len(seen) != k + 1)], dim=dim)

            m.setattr(torch, "cat", silence)
            assert (model(x, t) - before).abs().max() > 1e-6


def test_the_first_skip_is_taken_last():
    """The decoder's last block must be handed the stem's map, its first the deepest one."""
    model, x, t = waken(UNet(TINY, 3, (16, 16))), torch.randn(1, 3, 16, 16), torch.tensor([5])
    maps, real = [], torch.cat
    with pytest.MonkeyPatch.context() as m:
        m.setattr(torch, "cat", lambda z, dim=0: (maps.append(z[1]) if z[0].ndim == 4 else None) or real(z, dim=dim))
        model(x, t)
    assert_close(maps[-1], model.stem(x))
    assert [z.shape[-1] for z in maps] == [4, 4, 4, 8, 8, 8, 16, 16, 16]


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for on in (False, True):
        model = waken(UNet(replace(TINY, grad_checkpoint=on), 3, (16, 16)))
        torch.manual_seed(2)
        model(torch.randn(2, 3, 16, 16), torch.tensor([3, 70])).square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads):
        assert torch.equal(a, b)


def test_gradient_checkpointing_keeps_less_for_the_backward_pass():
    def saved(on):
        size = 0

        def pack(tensor):
            nonlocal size
            size += tensor.numel()
            return tensor

        model = UNet(replace(TINY, grad_checkpoint=on), 3, (16, 16))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda z: z):
            model(torch.randn(2, 3, 16, 16), torch.tensor([3, 70]))
        return size

    assert saved(True) < 0.6 * saved(False)


def test_sizes_that_are_multiples_work():
    unit = size_multiple(TINY)
    assert unit == 4
    UNet(TINY, 3, (unit, unit))(torch.randn(1, 3, unit, unit), torch.tensor([1]))


# ---------------------------------------------------------------- parts


def test_time_frequencies_run_geometrically_from_1_to_one_ten_thousandth():
    t, dim = torch.tensor([1, 7, 1000]), 8
    freqs = [10_000 ** (-i / 3) for i in range(4)]
    expected = [[math.sin(u * f) for f in freqs] + [math.cos(u * f) for f in freqs] for u in t.tolist()]
    assert_close(sinusoidal(t, dim), torch.tensor(expected), rtol=1e-3, atol=1e-4)
    slow = torch.arctan2(sinusoidal(torch.tensor([1]), dim)[0, 3], sinusoidal(torch.tensor([1]), dim)[0, 7])
    assert slow.item() == pytest.approx(1e-4, rel=1e-5)


def test_every_pair_of_timesteps_is_told_apart_and_no_channel_is_constant():
    table = sinusoidal(torch.arange(1, 1001), 128)
    distances = torch.cdist(table, table) + 10 * torch.eye(1000)
    assert distances.min() > 0.1
    assert (table.std(0) > 1e-6).all()


def test_linear_attention_is_the_quadratic_formula():
    q, k, v = (torch.randn(2, 3, 10, 4, dtype=torch.float64) for _ in range(3))
    elu_1 = lambda z: torch.where(z > 0, z + 1, z.exp())  # noqa: E731 - elu(z) + 1, written out
    weights = elu_1(q) @ elu_1(k).transpose(-2, -1)
    expected = weights / weights.sum(-1, keepdim=True) @ v
    assert_close(linear_attention(q, k, v), expected)


def test_phi_is_elu_plus_one():
    z = torch.linspace(-25, 5, 301, dtype=torch.float64)
    assert_close(phi(z), torch.where(z > 0, z + 1, z.exp()), rtol=1e-12, atol=0)


def test_linear_attention_returns_a_constant_value_unchanged():
    q, k = torch.randn(2, 2, 50, 8) * 5, torch.randn(2, 2, 50, 8) * 5
    assert_close(linear_attention(q, k, torch.full((2, 2, 50, 8), 3.0)), torch.full((2, 2, 50, 8), 3.0))


@pytest.mark.parametrize("low", [-20.0, -60.0, -1e4])
def test_linear_attention_is_a_mean_however_negative_queries_and_keys_are(low):
    v = torch.arange(8.0).reshape(1, 1, 4, 2)
    q, k = torch.full((1, 1, 4, 3), low), torch.zeros(1, 1, 4, 3)
    for query, key in ((q, k), (k, q)):
        assert_close(linear_attention(query, key, v), v.mean(dim=2, keepdim=True).expand_as(v))


def test_linear_attention_does_not_overflow_in_half_precision():
    """The sum of 4,096 keys times values of 100 exceeds the largest float16."""
    q = k = torch.full((1, 1, 4096, 4), 3.0, dtype=torch.float16)
    v = torch.full((1, 1, 4096, 4), 100.0, dtype=torch.float16)
    out = linear_attention(q, k, v)
    assert out.dtype == torch.float16
    assert_close(out, v)


def test_linear_attention_sums_in_float32_under_autocast():
    q, k, v = (torch.randn(1, 2, 256, 8) for _ in range(3))
    exact = linear_attention(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(linear_attention(q, k, v), exact)


@pytest.mark.parametrize("linear", [False, True])
def test_attention_is_a_residual_that_starts_as_the_identity(linear):
    attention, x = Attention(16, heads=2, linear=linear), torch.randn(2, 16, 4, 6)
    assert torch.equal(attention(x), x)
    torch.nn.init.normal_(attention.proj.weight)
    assert (attention(x) - x).abs().max() > 1e-3
    attention.proj.bias.data.fill_(1.0)
    attention.proj.weight.data.zero_()
    assert_close(attention(x), x + 1)


@pytest.mark.parametrize("linear", [False, True])
def test_attention_treats_all_places_alike(linear):
    """Permuting the pixels permutes the output: attention by itself knows no neighbourhood."""
    attention, x = waken(Attention(16, heads=4, linear=linear)).double(), torch.randn(1, 16, 3, 5).double()
    order = torch.randperm(15)
    shuffled = x.flatten(2)[:, :, order].reshape(x.shape)
    assert_close(attention(x).flatten(2)[:, :, order].reshape(x.shape), attention(shuffled))


def test_softmax_attention_is_the_formula_head_by_head():
    attention, x = waken(Attention(8, heads=2)).double(), torch.randn(1, 8, 2, 3).double()
    qkv = attention.qkv(attention.norm(x)).flatten(2)[0]  # (3 C, N)
    out = []
    for head in range(2):
        q, k, v = (qkv[i * 8 + head * 4 : i * 8 + head * 4 + 4] for i in range(3))  # (d, N)
        out.append(v @ torch.softmax(q.T @ k / 2.0, dim=1).T)  # sqrt(d) = 2
    expected = x + attention.proj(torch.cat(out).reshape(1, 8, 2, 3))
    assert_close(attention(x), expected)


def test_resblock_starts_as_its_skip_and_shifts_by_the_embedding():
    block, x, emb = ResBlock(8, 8, 16), torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    assert torch.equal(block(x, emb), x)
    waken(block)
    assert (block(x, emb) - block(x, emb + 1)).abs().max() > 1e-4
    assert (block(x, emb) - block(x + 1, emb)).abs().max() > 0.5  # the residual carries x itself


def test_resblock_is_a_residual_also_after_training():
    """Its branch alone is blind to a constant added to every channel of a group, its skip is not."""
    block = waken(ResBlock(8, 8, 16)).double()
    x, emb = torch.randn(1, 8, 4, 4).double(), torch.randn(1, 16).double()
    assert_close(block(x + 100, emb), block(x, emb) + 100)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_resblock_is_the_formula_in_its_order(scale_shift):
    """Norm, SiLU, convolution, shift; norm, SiLU, dropout, convolution; and the skip.  Or norm, scale and shift."""
    block = waken(ResBlock(8, 16, 12, dropout=0.5, scale_shift=scale_shift)).double()
    x, emb = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 12).double()
    torch.manual_seed(5)
    found = block(x, emb)
    torch.manual_seed(5)
    h, v = block.conv1(F.silu(block.norm1(x))), block.emb(F.silu(emb))[:, :, None, None]
    h = block.norm2(h) * (1 + v[:, :16]) + v[:, 16:] if scale_shift else block.norm2(h + v)
    h = block.conv2(F.dropout(F.silu(h), 0.5))
    assert_close(found, block.skip(x) + h)


def test_attention_sits_where_the_short_side_has_the_resolution_and_in_the_first_middle_block():
    config = Model(8, (1, 2), 1, mid_blocks=2, attention_resolutions=(8,), heads=2)
    names = [name for name, module in UNet(config, size=(16, 32)).named_modules() if isinstance(module, Attention)]
    assert names == ["encoder.1.0.attn", "middle.0.1", "decoder.0.0.attn", "decoder.0.1.attn"]


def test_dropout_acts_in_training_only():
    block, x, emb = waken(ResBlock(8, 8, 16, dropout=0.5)), torch.randn(1, 8, 4, 4), torch.randn(1, 16)
    assert not torch.equal(block(x, emb), block(x, emb))
    block.eval()
    assert torch.equal(block(x, emb), block(x, emb))


def test_groups_keep_at_least_four_channels_and_are_32_in_the_papers_network():
    assert group_norm(128).num_groups == group_norm(512).num_groups == 32
    for channels in (4, 8, 12, 48, 96, 384):
        norm = group_norm(channels)
        assert channels % norm.num_groups == 0 and channels // norm.num_groups >= 4


def test_fewer_than_four_channels_are_one_group():
    assert group_norm(3).num_groups == group_norm(1).num_groups == 1


def test_attention_is_of_the_kind_and_at_the_resolution_asked_for():
    assert Attention(8, linear=True).attend is linear_attention
    assert Attention(8).attend is F.scaled_dot_product_attention
    model = Model(8, (1, 2), attention_resolutions=(8,), linear_attention_resolutions=(), patch=2)
    fine, coarse = (blocks[0].attn for blocks in UNet(model, 3, (32, 32)).encoder)  # 16 x 16 and 8 x 8
    assert isinstance(coarse, Attention) and not isinstance(fine, Attention)


def test_upsample_copies_pixels():
    up = Upsample(1)
    torch.nn.init.dirac_(up.conv.weight)
    torch.nn.init.zeros_(up.conv.bias)
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert_close(up(x)[0, 0], torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]).float())


def test_where_both_kinds_of_attention_are_asked_for_it_is_linear():
    """As config.py says: linear attention there instead."""
    config = replace(PRESETS["smoke"].model, attention_resolutions=(8,), linear_attention_resolutions=(8,))
    assert Block(8, 8, 32, config, 8).attn.attend is linear_attention
