"""Whole pipelines of diffusers, sampled by our solvers: text encoders, network, VAE and schedule.

The components are those that the checkpoint's own model_index.json names.

A class of pipeline is a `Recipe` in the table of architectures: which encoders, how a prompt becomes a condition, and
what is usual. The rest is the same for all, and so is the seed: its noise is that of diffusers for
`generator=torch.Generator().manual_seed(seed)`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from fusion.codecs.codec import Codec, load_codec
from fusion.diffusion import pipeline_texts as texts
from fusion.diffusion.architectures import PIPELINES, Recipe
from fusion.diffusion.checkpoints import load, read_settings
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.schedules import DiscreteSchedule, FlowSchedule, Predict, read_schedule
from fusion.diffusion.snapshots import place
from fusion.flow.solvers import SOLVERS, Guidance
from fusion.sequence.images import to_image

INDEX = "model_index.json"
USUAL = 1024  # pixels of a side, where a checkpoint does not say
FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
"""What is brought from the hub: configs and vocabularies, weights, merges of CLIP's tokenizer, sentencepiece models."""


DISTILLED = {"told": True, "steps": 4, "guidance": 1.0}
"""What is otherwise in a pipeline whose model_index.json says is_distilled: no second branch, few steps."""


@dataclass(frozen=True)
class Pipeline:
    """A network with what stands before and behind it, ready to draw. sample_size: side of the usual image in latent
    pixels."""

    recipe: Recipe
    network: nn.Module
    codec: Codec
    readers: texts.Readers
    schedule: FlowSchedule | DiscreteSchedule
    sample_size: int

    def draw(self, prompts: str | int | Sequence[str | int], **params) -> list[Image.Image]:
        """Images of every prompt, n of each side by side: `sample`, whose arguments these are, and the VAE."""
        return [to_image(self.codec.decode(latents[None])[0]) for latents in self.sample(prompts, **params)]

    @torch.no_grad()
    def sample(
        self,
        prompts: str | int | Sequence[str | int],
        n: int = 1,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        negative: str = "",
        solver: str | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Latents of unit scale, fp32. size: (width, height) in pixels; what is None is what is usual for this
        pipeline.

        guidance: scale of text, 1 for none; both branches are one batch. negative: text, or class, of the other branch.
        ValueError in one line.
        """
        recipe = self.recipe
        solver, steps = recipe.solver if solver is None else solver, recipe.steps if steps is None else steps
        if solver not in SOLVERS:
            raise ValueError(f"unknown solver {solver!r}: use one of {', '.join(SOLVERS)}")
        prompts = self._checked(prompts, negative)
        shape = (len(prompts) * n, self.network.config.channels, *self._sides(size))
        predict = self._prediction(prompts, n, recipe.guidance if guidance is None else guidance, negative)
        times = self.schedule.times(steps, recipe.patches(self.network.config, *shape[2:]))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(_weight(self.network).device)
        return SOLVERS[solver](self.schedule.velocity(predict), self.schedule.begin(noise, times), times)

    def condition(self, prompts: Sequence[str | int], read: Callable | None = None) -> Conditioning:
        """What the network is told of prompts, where it is and in its dtype. read: otherwise than as prompts are."""
        weight = _weight(self.network)
        return (read or self.recipe.condition)(self.readers, prompts).to(weight.device, weight.dtype)

    def _prediction(self, prompts: list, n: int, scale: float, negative: str) -> Predict:
        """The network with its condition and its guidance, whose branches are rows of one batch."""
        guidance = Guidance(text=1.0 if self.recipe.told else scale)
        branches, images = len(guidance.weights), len(prompts) * n
        cond = self.condition(prompts).rows(torch.arange(len(prompts)).repeat_interleave(n))
        if branches == 2:
            cond = cond.joined(
                self.condition([negative], self.recipe.unlike).rows(torch.zeros(images, dtype=torch.long))
            )
        if self.recipe.told and self.network.config.guidance:
            cond = replace(cond, guidance=torch.full((images,), float(scale), device=_weight(self.network).device))

        def predict(x: Tensor, t: Tensor) -> Tensor:
            batch = x.repeat(branches, 1, 1, 1)
            told = self.network(batch, t.to(x).expand(len(batch)), cond).chunk(branches)
            guided = guidance.combine(told)
            return (
                guided * (told[0].norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
                if self.recipe.as_long
                else guided
            )

        return predict

    def _checked(self, prompts, negative) -> list:
        prompts = [prompts] if isinstance(prompts, str | int) else list(prompts)
        if not prompts:
            raise ValueError("no prompt: give at least one")
        for prompt in (*prompts, negative):
            if not isinstance(prompt, self.recipe.prompts):
                kinds = " or ".join(kind.__name__ for kind in self.recipe.prompts)
                raise ValueError(f"prompt {prompt!r} is of type {type(prompt).__name__}: this pipeline reads {kinds}")
        if negative and self.recipe.told:
            raise ValueError(
                f"negative={negative!r}: this network is told the scale of guidance and has no second branch; leave "
                "negative out"
            )
        return prompts

    def _sides(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Height and width in latent pixels."""
        scale = self.codec.downsample
        width, height = size or (self.sample_size * scale,) * 2
        stride = scale * self.network.config.patch_size
        if width < 1 or height < 1 or width % stride or height % stride:
            raise ValueError(
                f"size {width}x{height}: give sides that {stride} divides, the VAE's {scale} times patches of "
                f"{stride // scale}"
            )
        return height // scale, width // scale


def pipeline(
    folder_or_hub_id: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    encoders: Mapping[str, str | Path] | None = None,
) -> Pipeline:
    """A pipeline saved by diffusers, in a folder or on the hub, as ours. Safetensors and text alone are read, nothing
    is unpickled.

    dtype: of network and encoders, as they were saved unless given; the VAE's is float32 unless given. encoders: text
    models by name, each in a folder or on the hub with its tokenizer, that the pipeline comes without (HiDream:
    {"text_encoder_4": a Llama 3.1}) or that stand in the place of its own. ValueError in one line: no pipeline there, a
    class without a recipe, a component missing or unreadable.
    """
    folder, others = place(folder_or_hub_id, [INDEX]), dict(encoders or {})
    index = _index(folder)
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise ValueError(
            f"{folder}: a {kind or 'pipeline without a class'}; those that can be loaded are {', '.join(PIPELINES)}"
        )
    architecture = PIPELINES[kind]
    recipe = architecture.pipelines[kind]
    recipe = replace(recipe, **DISTILLED) if index.get("is_distilled") else recipe
    there = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and entry[0]}
    own = _components(recipe, there, others, f"{folder}/{INDEX}", kind)
    names = ("transformer", "vae", "scheduler", *own, *(name.replace("text_encoder", "tokenizer") for name in own))
    folder = place(folder_or_hub_id, [f"{name}/{files}" for name in names for files in FILES])
    if lacking := [name for name in names if not (folder / name).is_dir()]:
        raise ValueError(f"{folder} has no folder {lacking[0]}, which its {INDEX} names: copy the pipeline again")
    network, codec = load(folder / "transformer", dtype, device), load_codec(folder / "vae", dtype, device)
    if not isinstance(network, architecture.network) or network.config.channels != codec.channels:
        raise ValueError(
            f"{folder}: the network, a {type(network).__name__}, does not draw the {codec.channels} channels of "
            "this VAE"
        )
    readers = {name: texts.load_reader(folder, name, there, dtype, device) for name in own}
    readers |= {name: texts.load_other(found, name, dtype, device) for name, found in others.items()}
    labels = {
        name.strip(): int(number) for number, names in index.get("id2label", {}).items() for name in names.split(",")
    }
    return Pipeline(
        recipe,
        network,
        codec,
        texts.Readers(readers, labels, network.config),
        read_schedule(folder / "scheduler", recipe.even, recipe.by_size),
        read_settings(folder / "transformer").get("sample_size", USUAL // codec.downsample),
    )


def _components(recipe: Recipe, there: Mapping[str, str], others: Mapping, index: str, kind: str) -> list[str]:
    """The text encoders that the pipeline brings itself. ValueError for what is missing, or given and not read."""
    for name in ("transformer", "vae", "scheduler", *recipe.encoders):
        if name not in there and name not in others:
            give = f'; give encoders={{"{name}": a folder or hub id}}' if name in recipe.encoders else ""
            raise ValueError(f"{index} names no {name}, which {kind} needs{give}")
    read = (*recipe.encoders, *recipe.optional)
    if unread := [name for name in others if name not in read]:
        raise ValueError(
            f"encoders={dict(others)}: {kind} reads {', '.join(read) or 'no text encoder'}, and not {unread[0]}"
        )
    return [name for name in read if name in there and name not in others]


def _index(folder: Path) -> dict:
    try:
        return json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: no diffusers pipeline there ({INDEX} is missing)") from None
    except ValueError as error:
        raise ValueError(f"{folder}/{INDEX} cannot be read ({error})") from None


def _weight(network: nn.Module) -> Tensor:
    return next(network.parameters())
