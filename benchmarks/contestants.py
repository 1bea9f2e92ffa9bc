"""What does each contestant of compare.py do in one training step and in one sampling?

Every class has the same face: `train(k)` makes k whole steps (data, forward, backward, clip, optimiser, EMA),
`sample(n)` draws n pictures by DDIM with 50 steps, `network` is what both run.  Peers are driven as their own
training scripts drive them: same loader, optimiser, EMA and reading of the loss; FID and saving are left out.
"""

from pathlib import Path

import torch

from config import PRESETS, Model, override

STEPS = 50  # of DDIM
# One entry a network; the peers are given the same numbers.  Attention is at 16 x 16 and in the middle.
NETWORKS = {
    "base-64": Model(64, (1, 2, 4, 8), num_res_blocks=1, dropout=0.0),
    "base-128": Model(),
}


class Ours:
    """Trainer.train_step and ddim(), as main.py and generate.py call them."""

    def __init__(self, folder, model, batch, device, precision, compiled):
        from dataclasses import replace

        from dataset import sources
        from machine import keep_memory
        from processes import start
        from trainer import Trainer

        keep_memory()  # as all our programs do
        config = override(PRESETS["cifar10"], {"train.batch_size": batch, "data.source": str(folder)})
        config = replace(config, model=model)
        images = sources.load(str(folder), size=config.data.size, channels=3, cache=Path(folder).parent / "cache")
        train, val = sources.split(images, config.data.val_fraction, 0)
        self.trainer = Trainer(config, images, train, val, Path(folder).parent, start(device), precision, compiled)
        self.network, self.device = self.trainer.model, self.trainer.device
        if compiled:
            self.trainer.ema.model.compile()  # in place: it keeps the names of its weights

    def train(self, k):
        for _ in range(k):
            self.trainer.train_step()
        return self.trainer.sums.tolist()  # the host waits here, once

    def sample(self, n):
        from dataset.pixels import to_uint8
        from diffusion.samplers import ddim
        from diffusion.steps import begin, last, spaced

        diffusion = self.trainer.diffusion
        x_T, _ = begin(0, range(n), (3, 32, 32), self.device)
        denoise, timesteps = diffusion.denoiser(self.trainer.ema.model), spaced(diffusion.T, STEPS)
        with self.trainer.autocast():
            x = last(ddim(denoise, diffusion.schedule, x_T, timesteps=timesteps))
        return to_uint8(x).cpu()


class Lucidrains:
    """denoising-diffusion-pytorch: its Unet, GaussianDiffusion and Trainer."""

    install = "denoising-diffusion-pytorch"

    def __init__(self, folder, model, batch, device, precision, compiled):
        from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

        side = 32
        full = tuple(side >> level in model.attention_resolutions for level in range(len(model.channel_mults)))
        self.network = Unet(
            model.channels, dim_mults=model.channel_mults, full_attn=full, dropout=model.dropout, flash_attn=True
        )
        diffusion = GaussianDiffusion(self.network, image_size=side, timesteps=1000, sampling_timesteps=STEPS)
        self.trainer = Trainer(
            diffusion, str(folder), train_batch_size=batch, train_num_steps=0, save_and_sample_every=10**9,
            results_folder=str(Path(folder).parent / "lucidrains"), calculate_fid=False,
            amp=precision != "fp32", mixed_precision_type=precision if precision != "fp32" else "no",
        )  # fmt: skip
        self.device = self.trainer.device
        if compiled:
            self.network.compile()
            self.trainer.ema.ema_model.model.compile()

    def train(self, k):
        self.trainer.train_num_steps = self.trainer.step + k
        self.trainer.train()  # reads the loss after every step

    def sample(self, n):
        model = self.trainer.ema.ema_model.eval()
        with self.trainer.accelerator.autocast():
            return model.sample(batch_size=n).cpu()


class Diffusers:
    """diffusers: UNet2DModel and DDIMPipeline, in the loop of its script for unconditional image generation."""

    install = "diffusers accelerate"

    def __init__(self, folder, model, batch, device, precision, compiled):
        from accelerate import Accelerator
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        levels, side = len(model.channel_mults), 32
        attends = [side >> level in model.attention_resolutions for level in range(levels)]
        self.network = UNet2DModel(
            sample_size=side,
            block_out_channels=tuple(model.channels * m for m in model.channel_mults),
            layers_per_block=model.num_res_blocks,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            attention_head_dim=None,  # one head, as in the paper
            dropout=model.dropout,
        )
        self.accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000)
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        look = v2.Compose([
            v2.PILToTensor(), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ])  # fmt: skip
        loader = torch.utils.data.DataLoader(ImageFolder(folder, look), batch_size=batch, shuffle=True, drop_last=True)
        rates = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
        if compiled:
            self.network.compile()
        self.model, self.optimizer, self.loader, self.rates = self.accelerator.prepare(
            self.network, optimizer, loader, rates
        )
        self.ema = EMAModel(
            self.network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75,
            model_cls=UNet2DModel, model_config=self.network.config,
        )  # fmt: skip
        self.ema.to(self.accelerator.device)
        self.device, self.endless = self.accelerator.device, self._batches()

    def _batches(self):
        while True:
            yield from self.loader

    def train(self, k):
        self.model.train()
        for _ in range(k):
            clean, _ = next(self.endless)
            noise = torch.randn(clean.shape, device=clean.device)
            t = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
            noisy = self.scheduler.add_noise(clean, noise, t)
            with self.accelerator.accumulate(self.model):
                loss = torch.nn.functional.mse_loss(self.model(noisy, t).sample.float(), noise)
                self.accelerator.backward(loss)
                self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.rates.step()
                self.optimizer.zero_grad()
            self.ema.step(self.network.parameters())
            loss.detach().item()  # the script logs every step

    def sample(self, n):
        from diffusers import DDIMPipeline, DDIMScheduler

        pipeline = DDIMPipeline(self.network.eval(), DDIMScheduler.from_config(self.scheduler.config))
        pipeline.set_progress_bar_config(disable=True)
        with self.accelerator.autocast():
            return pipeline(batch_size=n, num_inference_steps=STEPS, output_type="np").images


CONTESTANTS = {"ours": Ours, "denoising-diffusion-pytorch": Lucidrains, "diffusers": Diffusers}
