"""Checkpoints of diffusers in and out: a folder with config.json and safetensors, in shards or not."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fusion.common.atomic import new_folder
from fusion.diffusion.architectures import ARCHITECTURES, COUNTERPARTS
from fusion.diffusion.networks.name_tables import give, take
from fusion.diffusion.snapshots import place

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


HUB = [
    f"{folder}{files}"
    for folder in ("", "transformer/")
    for files in ("config.json", "diffusion_pytorch_model*.safetensors", INDEX)
]
"""The files of a network in a repository of the hub, be it the repository's own or a pipeline's."""
EARLIER = "Transformer2DModel"
"""The class that the published DiT and PixArt were of; the type of their norm says which is which."""


def load(
    folder_or_hub_id: str | Path, dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> nn.Module:
    """The network in a folder or hub repository of diffusers, or in the `transformer` of a pipeline there, as ours and
    ready to sample from.

    dtype: of the weights, as they were saved unless given. Safetensors and JSON alone are read. Raises ValueError in
    one line: no checkpoint there, no network to reach the hub, a class without an entry in the table of architectures,
    tensors missing, unknown or of another shape.
    """
    folder = place(folder_or_hub_id, HUB)
    if not (folder / "config.json").is_file() and (folder / "transformer").is_dir():
        folder = folder / "transformer"
    settings = read_settings(folder)
    theirs = settings.get("_class_name", "an unnamed class")
    architecture = COUNTERPARTS.get(theirs)
    if architecture is None or architecture.diffusers is None:
        raise ValueError(f"{folder}: a checkpoint of {theirs}; those of {', '.join(COUNTERPARTS)} can be loaded")
    counterpart = architecture.diffusers
    try:
        config, tensors = counterpart.from_diffusers(settings), _tensors(folder)
        for name, made in counterpart.buffers(config).items():
            _check_buffer(name, tensors.pop(name, made), made)
        tensors = take(counterpart.names(config), tensors)
        model = architecture.network(config)
        _check_shapes(model, tensors)
    except KeyError as missing:
        raise ValueError(f"{folder}/config.json has no {missing}, which {theirs} needs") from None
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_(True).to(device=device, dtype=dtype).eval()


def save_diffusers(model: nn.Module, folder: str | Path) -> None:
    """Write a network as the diffusers folder it would have come from; it appears whole or not at all.

    Raises ValueError for networks that no class of diffusers is, and where the folder holds something already.
    """
    found = [one.diffusers for one in ARCHITECTURES.values() if one.network is type(model) and one.diffusers]
    if not found:
        raise ValueError(f"{type(model).__name__}: no class of diffusers is this network")
    (counterpart,) = found
    settings, folder = counterpart.to_diffusers(model.config), Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something already: give another folder")
    with new_folder(folder) as whole:
        tensors = give(counterpart.names(model.config), model.state_dict()) | counterpart.buffers(model.config)
        save_file(tensors, whole / WEIGHTS, metadata={"format": "pt"})
        (whole / "config.json").write_text(
            json.dumps({"_class_name": counterpart.classes[0]} | settings, indent=2), encoding="utf-8"
        )


def read_settings(folder: Path) -> dict:
    """The config.json of a network, its class by today's name. ValueError where there is none."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: no diffusers checkpoint there (config.json is missing)") from None
    except ValueError as error:
        raise ValueError(f"{folder}/config.json cannot be read ({error})") from None
    if settings.get("_class_name") == EARLIER:
        norms = {theirs: one.diffusers.norm for theirs, one in COUNTERPARTS.items() if one.diffusers}
        found = [theirs for theirs, norm in norms.items() if norm and norm == settings.get("norm_type")]
        settings["_class_name"] = found[0] if found else EARLIER
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
