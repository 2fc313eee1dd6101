"""A text-to-image model: a diffusion network with the text encoders that condition it, and its codec."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fusion.codecs.codec import Codec, load_codec, round8
from fusion.common.atomic import new_folder
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.registry import Sees, build
from fusion.diffusion.text_encoders import EncoderConfig, TextEncoders, load_encoder
from fusion.flow.matching import PATHS, estimate
from fusion.flow.solvers import SOLVERS, Guidance, schedule
from fusion.generation.sampling import Sampling, row_seeds
from fusion.sequence.images import to_image

CONFIG, WEIGHTS = "painter.json", "network.safetensors"


@dataclass
class TextToImageConfig:
    """What a text-to-image model is made of.

    architecture: a name of fusion.diffusion.registry; network: settings of its config. texts: its text encoders.
    texts_cache: a folder that keeps what they say, so that each text is read once. codec: pixel, or a folder or hub id
    of a diffusers autoencoder. target: what the network predicts, x, v or eps; None: x of pixels, v of latents. path:
    linear or vp. size: (width, height) drawn unless asked otherwise.
    """

    architecture: str = "dit"
    network: dict[str, Any] = field(default_factory=dict)
    texts: list[EncoderConfig] = field(default_factory=list)
    texts_cache: str | None = None
    codec: str = "pixel"
    target: str | None = None
    path: str = "linear"
    size: list[int] = field(default_factory=lambda: [32, 32])

    def __post_init__(self):
        if self.target not in (None, "x", "v", "eps") or self.path not in PATHS:
            raise ValueError(
                f"target={self.target!r}, path={self.path!r}: target is x, v or eps, and path one of {', '.join(PATHS)}"
            )


class TextToImage(nn.Module):
    """See the head of this file. `network(x, t, cond)` predicts `target`; `draw` is what people call."""

    def __init__(self, network: nn.Module, texts: TextEncoders, codec: Codec, config: TextToImageConfig):
        super().__init__()
        self.network, self.texts, self.config = network, texts, config
        self._codec = [codec]  # frozen, and no part of what is trained or averaged
        self.target = config.target or ("x" if codec.channels == 3 and codec.downsample == 1 else "v")
        self.flow_path = PATHS[config.path]

    @property
    def codec(self) -> Codec:
        """Pixels to latents and back."""
        return self._codec[0]

    @property
    def stride(self) -> int:
        """What sides of images are multiples of, in pixels: those of a patch, or of the coarsest level of a UNet."""
        config = self.network.config
        return self.codec.downsample * getattr(config, "stride", getattr(config, "patch_size", 1))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def draw(self, prompt: str, n: int = 1, seed: int = 0, **params) -> list[Image.Image]:
        """n images of a prompt, with seeds seed, seed + 1, ...; params: those of `images`."""
        return self.images([prompt] * n, seed, **params)

    @torch.no_grad()
    def images(
        self,
        prompts: Sequence[str],
        seed: int | Sequence[int] = 0,
        size: tuple[int, int] | None = None,
        steps: int = Sampling.steps,
        guidance: float = Sampling.guidance,
        negative: str = "",
        solver: str = Sampling.solver,
        shift: float = Sampling.shift,
        interval: tuple[float, float] = Sampling.guidance_interval,
    ) -> list[Image.Image]:
        """Draw an image for each prompt; image i starts from the noise of seed + i, or of seed[i], whatever else is
        drawn with it.

        size: (width, height) in pixels, multiples of `stride`. guidance: scale against the image of `negative`, 1 for
        none, within `interval` of times. Raises ValueError for sizes that do not fit, unknown solvers and prompts that
        are no texts.
        """
        if wrong := next((prompt for prompt in [*prompts, negative] if not isinstance(prompt, str)), None):
            raise ValueError(f"a prompt is a text, not a {type(wrong).__name__}")
        if solver not in SOLVERS:
            raise ValueError(f"solver={solver!r}: choose one of {', '.join(SOLVERS)}")
        noise = self._noise(row_seeds(seed, len(prompts)), size or tuple(self.config.size))
        guided = Guidance(text=guidance, interval=tuple(interval))
        velocity = self._velocity(self.texts([*prompts, *[negative] * len(prompts)]), guided)
        latents = SOLVERS[solver](velocity, noise, schedule(steps, shift), self.flow_path)
        return [to_image(pixels) for pixels in round8(self.codec.decode(latents))]

    def _noise(self, seeds: Sequence[int], size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        if any(side < 1 or side % self.stride for side in size):
            raise ValueError(
                f"size={tuple(size)}: width and height are multiples of {self.stride} for this text-to-image model"
            )
        shape = self.codec.channels, size[1] // self.codec.downsample, size[0] // self.codec.downsample
        generators = (torch.Generator().manual_seed(seed) for seed in seeds)
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(self.device)

    def _velocity(self, both: Conditioning, guidance: Guidance):
        """The guided velocity; with and without text in one batch."""

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            branches = guidance.branches(t)
            cond, copies = first(both, len(branches) * len(x)), x.repeat(len(branches), 1, 1, 1)
            predicted = self.network(copies, t.to(x.device).expand(len(copies)), cond)
            return estimate(
                guidance.combine(predicted.chunk(len(branches))), x, t.to(x.device), self.target, self.flow_path
            ).velocity

        return velocity

    def save_pretrained(self, folder: str | Path) -> None:
        """Write everything into one folder that `load_text_to_image` reads; the description last, so that a
        half-written folder is none."""
        with new_folder(folder, last=CONFIG) as place:
            save_file(
                {name: tensor.contiguous() for name, tensor in own_tensors(self.network).items()},
                place / WEIGHTS,
                metadata={"format": "pt"},
            )
            self.codec.save(place / "codec")
            for number, encoder in enumerate(self.texts):
                encoder.save_pretrained(place / "texts" / str(number))
            (place / CONFIG).write_text(json.dumps(asdict(self.config), indent=2), encoding="utf-8")


def own_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The state of a network, what several layers share once."""
    once = {name for name, _ in chain(network.named_parameters(), network.named_buffers())}
    return {name: tensor for name, tensor in network.state_dict().items() if name in once}


def first(cond: Conditioning, count: int) -> Conditioning:
    """The condition of the first rows of a batch."""
    cut = {
        name: value[:, :count] if name == "layers" else value[:count]
        for name, value in vars(cond).items()
        if value is not None
    }
    return Conditioning(**cut)


def make_text_to_image(config: TextToImageConfig) -> TextToImage:
    """A text-to-image model whose network is fresh. Raises ValueError in one line."""
    texts = TextEncoders([load_encoder(one) for one in config.texts], config.texts_cache)
    codec = load_codec(config.codec)
    network = build(config.architecture, config.network, Sees(codec.channels, **texts.sees))
    return TextToImage(network, texts, codec, config)


def load_text_to_image(folder: str | Path, device: str | torch.device | None = None) -> TextToImage:
    """A text-to-image model that `save_pretrained` wrote. Raises ValueError in one line where the folder holds none, or
    not all of one."""
    folder = Path(folder)
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: no text-to-image model there ({' '.join(str(error).split())[:100]})") from None
    settings["texts"] = [
        EncoderConfig(**one | {"path": str(folder / "texts" / str(n))}) for n, one in enumerate(settings["texts"])
    ]
    text_to_image = make_text_to_image(
        TextToImageConfig(**settings | {"codec": str(folder / "codec"), "texts_cache": None})
    )
    missing = own_tensors(text_to_image.network).keys() ^ weights.keys()
    if missing:
        raise ValueError(
            f"{folder}: {WEIGHTS} does not hold the weights of the {settings['architecture']} of {CONFIG} "
            f"({sorted(missing)[0]})"
        )
    text_to_image.network.load_state_dict(weights, strict=False)  # what is shared stands there once
    return text_to_image.to(device).eval()
