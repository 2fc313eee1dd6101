"""Checkpoints of diffusers in and out: a folder with config.json and safetensors, in shards or not."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fusion.diffusion.networks import dit, flux, flux2, hidream, lumina2, mmdit, pixart, sana, unet
from fusion.diffusion.networks.name_tables import Row, give, take
from fusion.diffusion.snapshots import place

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


@dataclass(frozen=True)
class Page:
    """An architecture, the class of diffusers that is the same network, and how one becomes the other.

    buffers: what their checkpoints hold beside weights; it follows from the config, and has to.
    """

    build: type[nn.Module]
    theirs: str
    from_diffusers: Callable[[dict], object]
    to_diffusers: Callable[[object], dict]
    names: Callable[[object], list[Row]]
    buffers: Callable[[object], dict[str, Tensor]] = lambda config: {}


PAGES = [
    Page(dit.DiT, "DiTTransformer2DModel", dit.from_diffusers, dit.to_diffusers, dit.names),
    Page(pixart.PixArt, "PixArtTransformer2DModel", pixart.from_diffusers, pixart.to_diffusers, pixart.names),
    Page(sana.Sana, "SanaTransformer2DModel", sana.from_diffusers, sana.to_diffusers, sana.names),
    Page(lumina2.Lumina2, "Lumina2Transformer2DModel", lumina2.from_diffusers, lumina2.to_diffusers, lumina2.names),
    Page(mmdit.MMDiT, "SD3Transformer2DModel", mmdit.from_diffusers, mmdit.to_diffusers, mmdit.names, mmdit.buffers),
    Page(flux.Flux, "FluxTransformer2DModel", flux.from_diffusers, flux.to_diffusers, flux.names),
    Page(flux2.Flux2, "Flux2Transformer2DModel", flux2.from_diffusers, flux2.to_diffusers, flux2.names),
    Page(
        hidream.HiDream, "HiDreamImageTransformer2DModel", hidream.from_diffusers, hidream.to_diffusers, hidream.names
    ),
    *(Page(unet.UNet, theirs, unet.from_diffusers, unet.to_diffusers, unet.names) for theirs in unet.CLASSES),
]


HUB = [
    f"{folder}{files}"
    for folder in ("", "transformer/")
    for files in ("config.json", "diffusion_pytorch_model*.safetensors", INDEX)
]
"""The files of a network in a repository of the hub, be it the repository's own or a pipeline's."""
EARLIER = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
"""The classes by what the published DiT and PixArt, which were called Transformer2DModel, say of their norm."""


def load(
    folder_or_hub_id: str | Path, dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> nn.Module:
    """The network in a folder or hub repository of diffusers, or in the `transformer` of a pipeline there, as ours and
    ready to sample from.

    dtype: of the weights, as they were saved unless given. Safetensors and JSON alone are read. Raises ValueError in
    one line: no checkpoint there, no network to reach the hub, a class that has no page here, tensors missing, unknown
    or of another shape.
    """
    folder = place(folder_or_hub_id, HUB)
    if not (folder / "config.json").is_file() and (folder / "transformer").is_dir():
        folder = folder / "transformer"
    settings = read_settings(folder)
    page = next((page for page in PAGES if page.theirs == settings.get("_class_name")), None)
    if page is None:
        known = ", ".join(page.theirs for page in PAGES)
        raise ValueError(
            f"{folder}: a checkpoint of {settings.get('_class_name', 'an unnamed class')}; those of {known} can "
            "be loaded"
        )
    try:
        config, tensors = page.from_diffusers(settings), _tensors(folder)
        for name, made in page.buffers(config).items():
            _check_buffer(name, tensors.pop(name, made), made)
        tensors = take(page.names(config), tensors)
        model = page.build(config)
        _check_shapes(model, tensors)
    except KeyError as missing:
        raise ValueError(f"{folder}/config.json has no {missing}, which {page.theirs} needs") from None
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_(True).to(device=device, dtype=dtype).eval()


def save_diffusers(model: nn.Module, folder: str | Path) -> None:
    """Write a network as the diffusers folder it would have come from; it appears whole or not at all.

    Raises ValueError for networks that no class of diffusers is, and where the folder holds something already.
    """
    page = next((page for page in PAGES if type(model) is page.build), None)
    if page is None:
        raise ValueError(f"{type(model).__name__}: no class of diffusers is this network")
    settings, folder = page.to_diffusers(model.config), Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something already: give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        whole = Path(temporary, "whole")
        whole.mkdir()
        tensors = give(page.names(model.config), model.state_dict()) | page.buffers(model.config)
        save_file(tensors, whole / WEIGHTS, metadata={"format": "pt"})
        (whole / "config.json").write_text(
            json.dumps({"_class_name": page.theirs} | settings, indent=2), encoding="utf-8"
        )
        whole.rename(folder)


def read_settings(folder: Path) -> dict:
    """The config.json of a network, its class by today's name. ValueError where there is none."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: no diffusers checkpoint there (config.json is missing)") from None
    except ValueError as error:
        raise ValueError(f"{folder}/config.json cannot be read ({error})") from None
    if settings.get("_class_name") == "Transformer2DModel":
        settings["_class_name"] = EARLIER.get(settings.get("norm_type"), "Transformer2DModel")
    return settings


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder, whatever their shards."""
    files = [WEIGHTS]
    if (folder / INDEX).is_file():
        files = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    elif not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"{WEIGHTS} is missing, and other weights (.bin) are pickles, which nothing here opens: save it as "
            "safetensors"
        )
    tensors = {}
    for file in files:
        try:
            tensors |= load_file(folder / file)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{file} is missing or broken ({' '.join(str(error).split())[:100]}): copy it again"
            ) from None
    return tensors


def _check_buffer(name: str, given: Tensor, made: Tensor) -> None:
    # Checkpoints in half precision hold it rounded.
    if given.shape != made.shape or not torch.allclose(given.float(), made.float(), atol=1e-2):
        raise ValueError(f"{name} is not what config.json says it is: this checkpoint has positions of its own")


def _check_shapes(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, parameter in model.state_dict().items():
        if tensors[name].shape != parameter.shape:
            given, wanted = tuple(tensors[name].shape), tuple(parameter.shape)
            raise ValueError(
                f"{name} has shape {given}, and config.json asks for {wanted}: config and weights do not belong "
                "together"
            )
