"""Codecs, pixels to latents of unit scale and back: no VAE, a VAE of diffusers, or fusion.codecs.autoencoder.

A codec is frozen. What it encodes does not depend on the rest of the batch or on chance: the mode of a VAE's posterior,
so that encoding a saved image again gives the same latents.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from fusion.common.atomic import new_folder, save
from fusion.common.tensor_cache import bytes_of, entry, read_entry, write_entry
from fusion.sequence.images import from_levels, to_levels

CONFIG = "config.json"


class CodecError(ValueError):
    """A codec that cannot be loaded or used; the message is one line: which one, what is wrong, what to do."""


def round8(pixels: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Pixels as an 8-bit file would hold them: clamped to [-1, 1], on 256 levels, float32."""
    return from_levels(to_levels(pixels))


class Codec(nn.Module, ABC):
    """What every codec offers. Latents are (b, channels, h / downsample, w / downsample), of about unit scale."""

    channels: int
    downsample: int

    @abstractmethod
    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Pixels in [-1, 1] to latents; same device and dtype as the pixels, wherever and however the codec
        computes."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b 3 h w"]:
        """Latents to pixels, not clamped (see `round8`); same device and dtype as the latents."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write the codec into `folder` itself (a model keeps its own in `codec/`); `load_codec` reads it back."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A short name for everything that the latents depend on: the kind, the configuration, the weights, the
        dtype."""


class Pixel(Codec):
    """No VAE: the latents are the pixels."""

    channels = 3
    downsample = 1

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The pixels."""
        return pixels

    def decode(self, latents: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The latents."""
        return latents

    def save(self, folder: str | Path) -> None:
        """Write a configuration that says so."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save(json.dumps({"_class_name": "Pixel"}) + "\n", Path(folder, CONFIG))

    def fingerprint(self) -> str:
        """There is nothing to vary."""
        return "pixel"


@dataclass(frozen=True)
class Family:
    """How an autoencoder maps pixels to raw latents and back, read off its class and configuration."""

    channels: Callable[[dict], int]
    downsample: Callable[[dict], int]
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor]


# Tiny maps [-1, 1] to its own [0, 1] inside, and its latents are on the scale of the VAE it distils; its
# latent_magnitude and latent_shift only serve to store latents as bytes (diffusers, autoencoder_tiny.py and vae.py).
# Flux.2 folds 2x2 latents into channels (pipeline_flux2.py). Qwen-Image's is a video VAE: an image is one frame.
# ConvAutoencoder is ours.
FAMILIES = {
    "AutoencoderKL": Family(
        channels=lambda config: config["latent_channels"],
        downsample=lambda config: 2 ** (len(config["block_out_channels"]) - 1),
        encode=lambda vae, pixels: vae.encode(pixels).latent_dist.mode(),
        decode=lambda vae, latents: vae.decode(latents).sample,
    ),
    "AutoencoderDC": Family(
        channels=lambda config: config["latent_channels"],
        downsample=lambda config: 2 ** (len(config["encoder_block_out_channels"]) - 1),
        encode=lambda vae, pixels: vae.encode(pixels).latent,
        decode=lambda vae, latents: vae.decode(latents).sample,
    ),
    "AutoencoderTiny": Family(
        channels=lambda config: config["latent_channels"],
        downsample=lambda config: 2 ** (len(config["encoder_block_out_channels"]) - 1),
        encode=lambda vae, pixels: vae.encode(pixels).latents,
        decode=lambda vae, latents: vae.decode(latents).sample,
    ),
    "AutoencoderKLFlux2": Family(
        channels=lambda config: config["latent_channels"] * 4,
        downsample=lambda config: 2 ** len(config["block_out_channels"]),
        encode=lambda vae, pixels: rearrange(
            vae.encode(pixels).latent_dist.mode(), "b c (h p) (w q) -> b (c p q) h w", p=2, q=2
        ),
        decode=lambda vae, latents: vae.decode(rearrange(latents, "b (c p q) h w -> b c (h p) (w q)", p=2, q=2)).sample,
    ),
    "AutoencoderKLQwenImage": Family(
        channels=lambda config: config["z_dim"],
        downsample=lambda config: 2 ** len(config["temperal_downsample"]),
        encode=lambda vae, pixels: vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0],
        decode=lambda vae, latents: vae.decode(latents[:, :, None]).sample[:, :, 0],
    ),
    "ConvAutoencoder": Family(
        channels=lambda config: config["latent_channels"],
        downsample=lambda config: config["cell"] * 2 ** (len(config["channels"]) - 1),
        encode=lambda vae, pixels: vae.encode(pixels),
        decode=lambda vae, latents: vae.decode(latents),
    ),
}


def _class(kind: str) -> type[Any]:
    """Of a family: diffusers', but for ours, which is in the same format."""
    if kind == "ConvAutoencoder":
        from fusion.codecs.autoencoder import ConvAutoencoder

        return ConvAutoencoder
    import diffusers  # takes seconds, and whoever works in pixel space never needs it

    return getattr(diffusers, kind)


class Autoencoder(Codec):
    """An autoencoder in diffusers' format (see FAMILIES), with latents shifted and scaled as its configuration says."""

    vae: Any  # nn.Module declares nothing of what diffusers' classes share

    def __init__(self, vae: nn.Module):
        """`vae` is an instance of one of the classes in FAMILIES; it is frozen."""
        super().__init__()
        kind = type(vae).__name__
        if kind not in FAMILIES:
            raise CodecError(f"{kind} is not a codec we know; use one of {', '.join(FAMILIES)}, or pixel")
        self.family = FAMILIES[kind]
        self.vae = vae.requires_grad_(False).eval()
        self.channels = self.family.channels(self.vae.config)
        self.downsample = self.family.downsample(self.vae.config)
        # Not buffers: `.to(bfloat16)` would round them.
        self.shift, self.scale = _normalisation(vae)

    def train(self, mode: bool = True) -> "Autoencoder":
        """Stay in evaluation mode, whatever happens to the model around it."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """`(raw - shift) * scale`. Raises ValueError if `downsample` does not divide the sides."""
        height, width = pixels.shape[2:]
        if height % self.downsample or width % self.downsample:
            raise ValueError(
                f"a {width}x{height} image has sides that {self.downsample} does not divide; fit it to the stride first"
            )
        with torch.autocast(self.vae.device.type, enabled=False):  # a codec's precision is its own
            raw = self.family.encode(self.vae, pixels.to(self.vae.device, self.vae.dtype)).float()
        return ((raw - self.shift.to(raw.device)) * self.scale.to(raw.device)).to(pixels)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b 3 h w"]:
        """`raw = latents / scale + shift`, decoded."""
        raw = latents.to(self.vae.device, torch.float32)
        raw = raw / self.scale.to(raw.device) + self.shift.to(raw.device)
        with torch.autocast(self.vae.device.type, enabled=False):
            return self.family.decode(self.vae, raw.to(self.vae.dtype)).to(latents)

    def save(self, folder: str | Path) -> None:
        """Write it in diffusers' own format: `config.json` and safetensors."""
        with new_folder(folder, last=CONFIG) as aside:
            self.vae.save_pretrained(aside)

    def fingerprint(self) -> str:
        """Hash of class, configuration, dtype and every weight."""
        config = {key: value for key, value in self.vae.config.items() if not key.startswith("_")}
        digest = hashlib.blake2b(digest_size=16)
        digest.update(
            json.dumps([type(self.vae).__name__, config, str(self.vae.dtype)], sort_keys=True, default=str).encode()
        )
        for name, weight in sorted(self.vae.state_dict().items()):
            digest.update(name.encode())
            digest.update(bytes_of(weight))
        return digest.hexdigest()


def _normalisation(vae: Any) -> tuple[Tensor, Tensor]:
    """Shift and scale of the raw latents, each (c, 1, 1): latents = (raw - shift) * scale.

    Per channel where latents_mean and latents_std are given (Playground 2.5, Qwen-Image); else scaling_factor and
    shift_factor (Stable Diffusion 3); Flux.2 keeps the statistics in a batch norm.
    """
    if type(vae).__name__ == "AutoencoderKLFlux2":
        mean, std = vae.bn.running_mean, (vae.bn.running_var + vae.config["batch_norm_eps"]).sqrt()
        return mean.float().cpu().view(-1, 1, 1), 1 / std.float().cpu().view(-1, 1, 1)
    scale = vae.config.get("scaling_factor", 1.0)
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        mean, std = [vae.config.get("shift_factor") or 0.0], [1.0]
    return torch.tensor(mean).view(-1, 1, 1), scale / torch.tensor(std).view(-1, 1, 1)


def load_codec(
    name_or_folder: str | Path = "pixel", dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> Codec:
    """The codec called "pixel", or one in a folder or a hub repository.

    The autoencoder is looked for in the place itself, then in its `codec/` (a model saved by us), then in its `vae/` (a
    pipeline of diffusers). Only safetensors are read. `dtype` None means float32; a configuration with `force_upcast`
    turns float16, in which Stable Diffusion XL's overflows, into float32. `device` "meta": only the configuration is
    read, and weights have shapes alone. Raises CodecError.
    """
    source = str(name_or_folder)
    if source == "pixel":
        return Pixel()
    subfolder, config = _find_config(source)
    kind = config["_class_name"]
    if kind == "Pixel":
        return Pixel()
    if kind not in FAMILIES:
        raise CodecError(f"{source}: {kind} is not a codec we know; use one of {', '.join(FAMILIES)}, or pixel")
    if config.get("in_channels", 3) != 3 or config.get("out_channels", 3) != 3:
        raise CodecError(f"{source}: does not map RGB to RGB; use an autoencoder with 3 channels in and out")
    if dtype == torch.float16 and config.get("force_upcast", kind == "AutoencoderKL"):
        dtype = torch.float32
    if str(device) == "meta":
        return Autoencoder(_without_weights(kind, config))
    return Autoencoder(_load_weights(source, subfolder, kind, dtype)).to(device)


def _find_config(source: str) -> tuple[str, dict]:
    """Which subfolder holds an autoencoder, and its configuration; the hub is asked last, and only once if it does not
    answer."""
    for fetch in (False,) if Path(source).is_dir() else (False, True):
        for subfolder in ("", "codec", "vae"):
            file = _config_file(source, subfolder, fetch)
            if file is None:
                continue
            try:
                config = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise CodecError(
                    f"{source}: {Path(subfolder, CONFIG)} is not JSON ({error}); save the codec again"
                ) from None
            if isinstance(config, dict) and "_class_name" in config:
                return subfolder, config
    raise CodecError(
        f"{source}: no codec found; give 'pixel', or a folder or hub id with diffusers' {CONFIG} in it, in codec/ "
        "or in vae/"
    )


def _config_file(source: str, subfolder: str, fetch: bool) -> Path | None:
    if Path(source).is_dir():
        file = Path(source, subfolder, CONFIG)
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, CONFIG, subfolder=subfolder or None, local_files_only=not fetch))
    except LocalEntryNotFoundError:
        if fetch:
            raise CodecError(
                f"{source}: is no folder here, and the hub cannot be reached; check the name and the network"
            ) from None
        return None
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
        return None


def _load_weights(source: str, subfolder: str, kind: str, dtype: torch.dtype | None) -> nn.Module:
    try:
        vae, info = _class(kind).from_pretrained(
            source,
            subfolder=subfolder or None,
            torch_dtype=dtype or torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        problem = " ".join(str(error).split())[:300]
        raise CodecError(
            f"{source}: the weights of {kind} cannot be read ({problem}); save it again, as safetensors"
        ) from None
    if info["missing_keys"]:
        raise CodecError(f"{source}: {len(info['missing_keys'])} weights of {kind} are missing; save it again")
    return vae


def _without_weights(kind: str, config: dict) -> nn.Module:
    with torch.device("meta"):
        return _class(kind).from_config(config)


class LatentCache(Codec):
    """A codec that remembers on disk what it has encoded, so that training reads latents instead of computing them.

    One safetensors file per image in `folder/<codec>/`, named by the hash of its pixels: changing an image, its size or
    the codec misses the cache, moving or renaming files does not. Several processes may share a folder.
    """

    def __init__(self, folder: str | Path, codec: Codec):
        """`folder` is made when needed; entries of other codecs in it are left alone."""
        super().__init__()
        self.codec = codec
        self.channels, self.downsample = codec.channels, codec.downsample
        self.folder = Path(folder) / codec.fingerprint()

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """What the codec gives, read from disk where possible; the rest is encoded as one batch and written."""
        files = [self._file(image) for image in pixels]
        rows: list[Any] = [(read_entry(file) or {}).get("latents") for file in files]
        missing = [i for i, row in enumerate(rows) if row is None]
        if missing:
            for i, latents in zip(missing, self.codec.encode(pixels[missing])):
                rows[i] = latents
                write_entry(files[i], {"latents": latents})
        return torch.stack([row.to(pixels) for row in rows])

    def decode(self, latents: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b 3 h w"]:
        """What the codec gives; pixels are not kept."""
        return self.codec.decode(latents)

    def save(self, folder: str | Path) -> None:
        """Save the codec; the cache stays where it is."""
        self.codec.save(folder)

    def fingerprint(self) -> str:
        """The codec's."""
        return self.codec.fingerprint()

    def _file(self, image: Float[Tensor, "3 h w"]) -> Path:
        return entry(self.folder, str(tuple(image.shape)).encode(), bytes_of(image.float()))
