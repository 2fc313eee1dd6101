"""Trains a small autoencoder on a folder of images or the built-in world.

Usage: `python -m train.codec configs/codec.yaml data.path=FOLDER`
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from fusion.codecs.autoencoder import ConvAutoencoder
from fusion.codecs.codec import FAMILIES, Autoencoder, round8
from fusion.common.atomic import new_file
from fusion.common.config import load, save_config
from fusion.data.formats.split import SUFFIXES, Split, Subjects
from fusion.data.formats.stream import shuffled
from fusion.data.formats.tables import TABLES, open_table, scan
from fusion.sequence.images import BadImage, cover, open_image, to_image, to_pixels
from fusion.training.ema import EMA
from fusion.training.interrupt import Interrupts
from fusion.training.metrics import Means, Metrics
from fusion.training.optim import Optim, Optimizers, rate
from fusion.training.precision import autocast
from fusion.worlds.shapes import Options, scene_image
from fusion.worlds.shapes.constants import IMAGE_SIZES
from fusion.worlds.shapes.tasks import any_scene


class CodecTrainingError(RuntimeError):
    """Training cannot go on; the message is one line."""


@dataclass
class Images:
    """What to learn from: a folder of images with all its subfolders, or "shapes", the built-in world.

    size: side of the square that images are resized and cropped to (the codec itself takes any size that its downsample
    divides); null, of the built-in world alone, for the sizes that it draws. crop: side of the random square that is
    cut from it to train on; a network of convolutions learns more from many small pieces. held_out: the share of
    subjects kept for validation, the same subjects that other programs hold out of the same folder. validate: how many
    held-out images are reconstructed at a time.
    """

    path: str = "shapes"
    size: int | None = 64
    crop: int = 64
    held_out: float = 0.05
    validate: int = 128


KINDS = ("kl", "conv")
CELL = 4
"""Pixels along each side of conv's cells."""


@dataclass
class Network:
    """The autoencoder. kind: kl, diffusers' AutoencoderKL; or conv, fusion.codecs.autoencoder's, which learns many
    times as fast on a CPU.

    Each of `channels` is a resolution, halved from one to the next; the first is that of the pixels, or of conv's cells
    of 4 x 4. layers: blocks of each. groups: of kl's norms.
    """

    kind: str = "kl"
    channels: tuple[int, ...] = (16, 32, 64)
    layers: int = 1
    latent_channels: int = 4
    groups: int = 8

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"network.kind={self.kind!r}: choose one of {', '.join(KINDS)}")
        if not self.channels or (self.kind == "kl" and any(c % self.groups for c in self.channels)):
            raise ValueError(
                f"network.channels={list(self.channels)}: each must be a multiple of network.groups={self.groups}"
            )

    @property
    def downsample(self) -> int:
        """Pixels along each side of a latent."""
        return 2 ** (len(self.channels) - 1) * (CELL if self.kind == "conv" else 1)


@dataclass
class CodecRun:
    """A run: the folder it writes, its images, the network, the weights of the losses, and how long it trains.

    Training ends after `images` images or `minutes` minutes, whichever comes first, and the learning rate falls along
    whichever is ahead. The loss is `l1` and `mse` of the pixels, `edge` times the L1 of their differences to the right
    and downward neighbours (what blur costs, without a perceptual network). Of an AutoencoderKL, `kl` times the
    divergence of the posterior from N(0, 1) per latent number; of a ConvAutoencoder, whose latents get noise of a
    deviation up to `noise` before they are decoded, `unit` times what keeps them from growing out of it: the squares of
    their channels' means and of how far the mean squares are from 1.
    """

    out: str = "out/codec"
    seed: int = 0
    data: Images = field(default_factory=Images)
    network: Network = field(default_factory=Network)
    l1: float = 1.0
    mse: float = 1.0
    edge: float = 0.5
    kl: float = 1e-4
    noise: float = 0.4
    unit: float = 0.01
    batch: int = 16
    images: int = 200_000
    minutes: float | None = None
    ema: float = 0.995
    precision: str = "fp32"
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    log_every: int = 20
    sample_every: int = 500
    optim: Optim = field(default_factory=lambda: Optim(lr=2e-3, warmup=50, weight_decay=0.0))

    def __post_init__(self):
        stride = self.network.downsample
        if self.data.size is None and self.data.path != "shapes":
            raise ValueError(
                "data.size=null: only the built-in world has sizes of its own; choose one for a folder of images"
            )
        if self.data.size and self.data.size % stride:
            raise ValueError(
                f"data.size={self.data.size}: the network's downsample {stride} does not divide it; choose a multiple"
            )
        largest = self.data.size or min(IMAGE_SIZES[0])
        if self.data.crop % stride or self.data.crop > largest:
            raise ValueError(
                f"data.crop={self.data.crop}: choose a multiple of {stride}, at most {largest}, the side of the "
                "smallest image"
            )


@dataclass(frozen=True)
class Result:
    """What a run reached. psnr: of held-out images through the saved codec, dB. mean, std: of the raw latents before
    scaling. interrupted: by which signal, None if it reached its end."""

    folder: Path
    psnr: float
    mean: float
    std: float
    images: int
    seconds: float
    skipped: dict[str, str]
    interrupted: str | None = None


# ---- images ----


@dataclass(frozen=True)
class CodecImages:
    """train: pixels without end. held_out: pixels to validate on. skipped: by path, why an image was not used; grows as
    they are read."""

    train: Iterator[Float[Tensor, "3 size size"]]
    held_out: Float[Tensor, "n 3 size size"]
    skipped: dict[str, str]


def open_images(data: Images, seed: int) -> CodecImages:
    """The images of a run. Raises ValueError when there are none."""
    return _world(data, seed) if data.path == "shapes" else _folder(data, seed)


def _world(data: Images, seed: int) -> CodecImages:
    options = Options(sizes={f"{data.size}x{data.size}": 1.0}) if data.size else Options()

    def draw(rng: np.random.Generator) -> Iterator[Tensor]:
        while True:
            yield to_pixels(scene_image(any_scene(rng, options)))

    side = data.size or data.crop  # all held-out images are of one size
    held_out = [image[:, :side, :side] for image in islice(draw(np.random.default_rng([seed, 1])), data.validate)]
    return CodecImages(draw(np.random.default_rng([seed, 0])), torch.stack(held_out), {})


def _folder(data: Images, seed: int) -> CodecImages:
    root, skipped = Path(data.path), {}
    if not root.is_dir():
        raise ValueError(f"data.path={data.path}: no such folder; give a folder of images, or shapes")
    sides = _split(root, data.held_out)
    train = _read(sides["train"], data.size, seed, skipped)
    first = list(
        islice(_read(sides["validation"], data.size, seed, skipped), min(data.validate, len(sides["validation"])))
    )
    return CodecImages(train, torch.stack(first), skipped)


def _split(root: Path, held_out: float) -> dict[str, list[Path]]:
    """The image files under `root` by side; tables in it tell which are of one subject, as they tell
    fusion.data.formats."""
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    subjects = Subjects()
    names = [subjects.add({"file_name": path.name}, path.name) for path in paths]
    for table in sorted(file for file in root.iterdir() if file.suffix in TABLES):
        for row in scan(open_table(table)):
            subjects.add(row.values, row.key)
    sides = {}
    for side in ("train", "validation"):
        chosen = Split(side, held_out).chosen(subjects.all())
        sides[side] = [path for path, name in zip(paths, names) if subjects.of(name) in chosen]
        if not sides[side]:
            raise ValueError(
                f"{root}: none of its {len(paths)} images is for {side}; add images, or change data.held_out"
            )
    return sides


def _read(paths: list[Path], size: int, seed: int, skipped: dict[str, str]) -> Iterator[Tensor]:
    """Pixels without end, every epoch in its own order; bad images are noted and left out."""
    bad = set()
    for place in count():
        epoch, position = divmod(place, len(paths))
        path = paths[shuffled(position, len(paths), f"{seed}/{epoch}")]
        try:
            yield to_pixels(cover(open_image(path), (size, size)))
        except BadImage as error:
            skipped[str(path)] = str(error)
            bad.add(path)
            if len(bad) == len(paths):
                raise ValueError(f"none of {len(paths)} images can be used; the first: {error}") from None


# ---- training ----


def build(network: Network, size: int | None) -> AutoencoderKL | ConvAutoencoder:
    """A fresh autoencoder, without attention so that any size works."""
    if network.kind == "conv":
        return ConvAutoencoder(network.channels, network.layers, CELL, latent_channels=network.latent_channels)
    halvings = len(network.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * halvings,
        up_block_types=("UpDecoderBlock2D",) * halvings,
        block_out_channels=network.channels,
        layers_per_block=network.layers,
        latent_channels=network.latent_channels,
        norm_num_groups=network.groups,
        sample_size=size,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def losses(vae: nn.Module, pixels: Float[Tensor, "b 3 h w"], run: CodecRun) -> dict[str, Tensor]:
    """The parts of the loss, unweighted, and their weighted sum `total`."""
    made, regular = (_with_noise if isinstance(vae, ConvAutoencoder) else _with_posterior)(vae, pixels, run)
    error = made.float() - pixels
    parts = {
        "l1": error.abs().mean(),
        "mse": error.square().mean(),
        "edge": error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean(),
    } | regular
    return parts | {"total": sum(getattr(run, name) * value for name, value in parts.items())}


def _with_posterior(
    vae: AutoencoderKL, pixels: Float[Tensor, "b 3 h w"], run: CodecRun
) -> tuple[Float[Tensor, "b 3 h w"], dict[str, Tensor]]:
    """What is made of a sample of the posterior, and what keeps that regular."""
    posterior = vae.encode(pixels).latent_dist
    return vae.decode(posterior.sample()).sample, {"kl": posterior.kl().mean() / posterior.mean[0].numel()}


def _with_noise(
    vae: ConvAutoencoder, pixels: Float[Tensor, "b 3 h w"], run: CodecRun
) -> tuple[Float[Tensor, "b 3 h w"], dict[str, Tensor]]:
    """What is made of latents with noise, as much of it as each image's draw says, and what keeps them of unit
    scale."""
    latents = vae.encode(pixels).float()
    deviation = run.noise * torch.rand(len(latents), 1, 1, 1, device=latents.device)
    by_channel = (latents.square().mean(dim=(0, 2, 3)) - 1).square().mean() + latents.mean(
        dim=(0, 2, 3)
    ).square().mean()
    return vae.decode(latents + deviation * torch.randn_like(latents)), {"unit": by_channel}


def modes(vae: nn.Module, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
    """The raw latents without chance."""
    return FAMILIES[type(vae).__name__].encode(vae, pixels.to(vae.device))


def train(run: CodecRun) -> Result:
    """Train, and write the run folder: config.yaml, metrics.jsonl, samples/, and the codec itself in codec/.

    A signal ends training early; the codec is saved all the same. Raises CodecTrainingError if the loss is not finite.
    """
    torch.manual_seed(run.seed)
    out = Path(run.out)
    out.mkdir(parents=True, exist_ok=True)
    codec_images = open_images(run.data, run.seed)
    save_config(run, out / "config.yaml")
    # Channels last is a third faster on CPUs; diffusers saves weights in their usual layout all the same.
    vae = build(run.network, run.data.size).to(run.device, memory_format=torch.channels_last)
    ema = EMA(vae, run.ema)
    images, seconds, interrupted = _loop(run, vae, ema, codec_images, Metrics(out / "metrics.jsonl"))
    with ema.swapped_in():
        mean, std = latent_scale(
            vae, torch.stack([_piece(image, run.data.crop) for image in islice(codec_images.train, 32 * run.batch)])
        )
        vae.register_to_config(shift_factor=mean, scaling_factor=1 / std)
        Autoencoder(vae).save(out / "codec")
        value = psnr(reconstruct(vae, codec_images.held_out), codec_images.held_out)
    return Result(out, value, mean, std, images, seconds, codec_images.skipped, interrupted)


def _loop(
    run: CodecRun, vae: nn.Module, ema: EMA, codec_images: CodecImages, metrics: Metrics
) -> tuple[int, float, str | None]:
    """Returns how many images were seen, the seconds it took, and the signal that ended it, if one did."""
    optimizers, means = Optimizers(vae, run.optim), Means()
    began, step, progress = time.monotonic(), 0, 0.0
    with Interrupts() as interrupts, _bar(run.images) as bar:
        while progress < 1 and not interrupts.asked:
            factor = rate(run.optim, step, progress)
            optimizers.set_rate(factor)
            parts = _update(run, vae, optimizers, codec_images, step)
            means.add(**{f"loss/{name}": (value, 1) for name, value in parts.items()})
            step += 1
            ema.update(step)
            seen, seconds = step * run.batch, time.monotonic() - began
            progress = max(seen / run.images, seconds / (60 * run.minutes) if run.minutes else 0.0)
            bar.set_postfix_str(f"{seconds * max(1 / progress - 1, 0) / 60:.1f} min left", refresh=False)
            bar.update(run.batch)
            last = progress >= 1 or interrupts.asked
            if step % run.log_every == 0 or last:
                metrics.log(
                    step, seen, seconds, **means.take(), lr=run.optim.lr * factor, images_per_second=seen / seconds
                )
            if step % run.sample_every == 0 or last:
                with ema.swapped_in():
                    value = _validate(vae, codec_images.held_out, Path(run.out) / "samples" / f"step_{step}")
                metrics.log(step, seen, time.monotonic() - began, **{"val/psnr": value})
                bar.write(f"step {step}: PSNR of held-out images {value:.2f} dB")
    return step * run.batch, time.monotonic() - began, interrupts.asked


def _bar(images: int) -> tqdm:
    shape = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} images [{elapsed}, {rate_fmt}{postfix}]"
    return tqdm(total=images, unit="img", bar_format=shape, smoothing=0.05)


def _update(
    run: CodecRun, vae: nn.Module, optimizers: Optimizers, codec_images: CodecImages, step: int
) -> dict[str, float]:
    """One step of the optimizer; returns the parts of the loss."""
    pixels = torch.stack([_piece(image, run.data.crop) for image in islice(codec_images.train, run.batch)])
    pixels = pixels.to(run.device, memory_format=torch.channels_last)
    with autocast(run.precision, pixels.device):
        parts = losses(vae, pixels, run)
    values = {name: value.item() for name, value in parts.items()}
    if not math.isfinite(values["total"]):
        raise CodecTrainingError(
            f"step {step}: the loss is {values['total']}; lower optim.lr={run.optim.lr} or set precision=fp32"
        )
    parts["total"].backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), run.optim.clip)
    optimizers.step()
    optimizers.zero_grad()
    return values


def _piece(image: Float[Tensor, "3 h w"], crop: int) -> Float[Tensor, "3 crop crop"]:
    top, left = (int(torch.randint(side - crop + 1, ())) for side in image.shape[1:])
    return image[:, top : top + crop, left : left + crop]


# ---- what came of it ----


@torch.no_grad()
def reconstruct(vae: nn.Module, pixels: Float[Tensor, "n 3 h w"], batch: int = 32) -> Float[Tensor, "n 3 h w"]:
    """Encode (mode), decode, round to 8 bits; on the CPU."""
    decode = FAMILIES[type(vae).__name__].decode
    return round8(torch.cat([decode(vae, modes(vae, x)).cpu() for x in pixels.split(batch)]))


def psnr(a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> float:
    """Peak signal-to-noise ratio in dB, the mean over images; pixels in [-1, 1], so the peak is 2. Equal images count
    as 8-bit noise."""
    mse = (a - b).square().mean(dim=(1, 2, 3)).clamp(min=(2 / 255) ** 2 / 12)
    return (10 * torch.log10(4 / mse)).mean().item()


@torch.no_grad()
def latent_scale(vae: nn.Module, pixels: Float[Tensor, "n 3 h w"], batch: int = 32) -> tuple[float, float]:
    """Mean and standard deviation of the raw latents of images, over all channels and places."""
    latents = torch.cat([modes(vae, x).cpu() for x in pixels.split(batch)])
    return latents.mean().item(), latents.std().item()


def _validate(vae: nn.Module, held_out: Float[Tensor, "n 3 h w"], folder: Path) -> float:
    """The PSNR of held-out images, and an image of the first eight: original, reconstruction, difference times
    four."""
    made = reconstruct(vae, held_out)
    rows = torch.stack([held_out[:8], made[:8], (4 * (made - held_out)[:8]).clamp(-1, 1)])
    folder.mkdir(parents=True, exist_ok=True)
    image = to_image(rearrange(rows, "r n c h w -> c (r h) (n w)"))
    with new_file(folder / "reconstructions.png") as aside:
        image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(aside, "PNG")
    return psnr(made, held_out)


def main(argv: Sequence[str]) -> int:
    """`python -m train.codec [config.yaml] [key=value ...]`"""
    try:
        result = train(load(CodecRun, argv))
    except (CodecTrainingError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in result.skipped.values():
        print(f"skipped {problem}", file=sys.stderr)
    print(
        f"{result.images} images in {result.seconds:.0f} s, {len(result.skipped)} files skipped, PSNR of held-out "
        f"images {result.psnr:.2f} dB"
    )
    print(f"raw latents: mean {result.mean:.3f}, std {result.std:.3f}; the codec is in {result.folder / 'codec'}")
    return 0
