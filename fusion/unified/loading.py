"""How weights are loaded: in which precision, on which devices, and quantised."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from textwrap import shorten
from typing import Any

import torch
from accelerate import infer_auto_device_map
from accelerate.utils import get_balanced_memory, get_max_memory
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer, AutoQuantizationConfig

from fusion.unified.backbone import family_of, layers_of
from fusion.unified.modality import above, last_norms

DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
    "auto": None,
}
"""Names of precisions; auto is the one that the weights were saved in."""

Place = int | str | torch.device
DeviceMap = Mapping[str, Place] | Place
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that are made by looking at the memory of the devices."""
OFFLOADED = ("cpu", "disk")


class PlacingError(ValueError):
    """Weights cannot be placed or quantised as they were asked to be; the message is one line that says what to do."""


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The precision that is meant; None is the one of the files. ValueError in one line for what is none."""
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}, or a floating dtype of torch")


# ---- devices ----


def whole_map(
    model: nn.Module,
    wanted: DeviceMap,
    max_memory: dict | None = None,
    dtype: torch.dtype | None = None,
    quantised: bool = False,
) -> dict[str, Place]:
    """The device of every part of a FusionModel, by name, as transformers and accelerate take it; the model may be on
    "meta".

    wanted: as they take it, with the names of the FusionModel ("llm.model.layers.0"); what a map leaves out goes to the
    main device, the first in it that computes. There lies all that is the FusionModel's own, where rows enter and
    leave, whatever a map says of it; copies of modules for images lie beside their layer unless they are named, and a
    head that has the embeddings' weights where those are. max_memory, dtype, quantised: what auto counts with.
    PlacingError for a map that names nothing, or no device.
    """
    if isinstance(wanted, str) and wanted in SPREAD:
        return _spread(model, wanted, max_memory, dtype, quantised)
    given = {"": wanted} if not isinstance(wanted, Mapping) else dict(wanted)
    given = {name: _device(place) for name, place in given.items()}
    names = {name for name, _ in (*model.named_modules(), *model.named_parameters())}
    if unknown := sorted(set(given) - names):
        raise PlacingError(
            f"device_map: the model has no {unknown[0]!r}; its parts are called {', '.join(_examples(model))}, ..."
        )
    main, (own, *rest) = main_device(given.values()), blocks(model)
    made = dict.fromkeys(own, main)
    for block in rest:
        first = _of(given, block[0], main)
        for name in block:
            inside = {key: place for key, place in given.items() if key.startswith(f"{name}.")}
            made[name] = first if name.startswith("twins.") and not _named(given, name) else _of(given, name, main)
            if inside:  # finer than a block: everything below has to be said
                finer = _leaves(model.get_submodule(name), {key.removeprefix(f"{name}.") for key in inside}, f"{name}.")
                made |= dict.fromkeys(finer, made.pop(name)) | inside
    head, embeddings = model.llm.get_output_embeddings(), model.llm.get_input_embeddings()
    if head.weight is embeddings.weight:
        at = {module: name for name, module in model.named_modules()}
        made[at[head]] = _of(made, at[embeddings], main)
    return _simple(made)


def _simple(places: dict[str, Place]) -> dict[str, Place]:
    """One entry where everything is in the same place: quantisers take the CPU among several for a place to offload
    to."""
    only = set(places.values())
    return {"": only.pop()} if len(only) == 1 else places


def main_device(places: Iterable[Place]) -> Place:
    """Where accelerate computes what is offloaded: the first device that is neither the CPU nor the disk, if there is
    one."""
    return next((place for place in places if place not in OFFLOADED), "cpu")


def _device(place: Place) -> Place:
    if isinstance(place, int) or place == "disk":
        return place
    with suppress(RuntimeError, TypeError):
        device = torch.device(place)
        return "cpu" if device.type == "cpu" else device.index or 0 if device.type == "cuda" else device
    raise PlacingError(
        f"device_map: {place!r} is no device: give {', '.join(SPREAD)}, cpu, disk, a torch device, or a dict of "
        "these by name"
    )


def _of(given: Mapping[str, Place], name: str, default: Place) -> Place:
    """What a map says of a module: the longest name that it lies in counts."""
    holding = [key for key in given if key in ("", name) or name.startswith(f"{key}.")]
    return given[max(holding, key=len)] if holding else default


def _named(given: Mapping[str, Place], name: str) -> bool:
    return any(key and (key == name or name.startswith(f"{key}.")) for key in given)


def _examples(model: nn.Module) -> list[str]:
    own, embeddings, layers, *_ = blocks(model)
    return [*embeddings[:1], *layers, *own[:1]]


def blocks(model: nn.Module) -> list[list[str]]:
    """Names of a FusionModel's parts in the order in which they compute: its own; what stands before the LLM's layers,
    with a head that shares the embeddings' weights; each layer with its copies for images, which are not parted; and
    what stands behind them."""
    names = {module: name for name, module in model.named_modules()}
    layers = [names[layer] for layer in layers_of(model.llm)]
    twins = [[f"twins.{number}"] if model.twins is not None else [] for number in range(len(layers) + 1)]
    head, embeddings = model.llm.get_output_embeddings(), model.llm.get_input_embeddings()
    family = family_of(model.config.text_config)
    top = names[above(model.llm, family)]
    behind = [f"{top}.{name}" for name in last_norms(model.llm, family)] + (
        [] if head.weight is embeddings.weight else [names[head]]
    )
    before = [
        name
        for name in _leaves(model.llm, {name.removeprefix("llm.") for name in (*layers, *behind)}, "llm.")
        if name not in behind
    ]
    own = [name for name in _leaves(model, set()) if name.partition(".")[0] not in ("llm", "twins")]
    return [own, before, *([layer, *beside] for layer, beside in zip(layers, twins)), [*behind, *twins[-1]]]


def _leaves(module: nn.Module, stops: set[str], prefix: str = "") -> list[str]:
    """Names of the largest modules and of the tensors beside them, `prefix` before each, in which none of the stops
    lies; stops are left out."""
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    found = [prefix + name for name, _ in tensors if name not in stops]
    for child, inner in module.named_children():
        below = {stop.removeprefix(f"{child}.") for stop in stops if stop.startswith(f"{child}.")}
        if child not in stops:
            found += _leaves(inner, below, f"{prefix}{child}.") if below else [prefix + child]
    return found


class Block(nn.ModuleList):
    """Modules that stay together."""


def _spread(
    model: nn.Module, how: str, max_memory: dict | None, dtype: torch.dtype | None, quantised: bool
) -> dict[str, Place]:
    """What accelerate makes of the blocks, one after the other."""
    named, seen = blocks(model), set()
    parts = nn.ModuleList(
        Block(part for name in block for part in [_part(model, name)] if not _known(part, seen)) for block in named
    )
    kinds = _small_dtypes(model, parts) if quantised else {}
    sizes = {"no_split_module_classes": [Block.__name__], "dtype": dtype, "special_dtypes": kinds}
    memory = (
        get_max_memory(max_memory)
        if how == "sequential"
        else get_balanced_memory(parts, max_memory, low_zero=how == "balanced_low_0", **sizes)
    )
    found = infer_auto_device_map(parts, memory, clean_result=False, **sizes)
    places = [_of(found, str(number), "cpu") for number in range(len(named))]
    places[0] = main_device(places)
    return _simple({name: place for block, place in zip(named, places) for name in block})


def _part(model: nn.Module, name: str) -> nn.Module:
    parent, _, last = name.rpartition(".")
    found = getattr(model.get_submodule(parent), last)
    return found if isinstance(found, nn.Module) else nn.ParameterList([found])


def _known(part: nn.Module, seen: set[nn.Parameter]) -> bool:
    """Whether all its weights have been seen, as those of a head that are the embeddings'; from now on they have."""
    weights = set(part.parameters())
    known = bool(weights) and weights <= seen
    seen |= weights
    return known


def _small_dtypes(model: nn.Module, parts: nn.Module) -> dict[str, torch.dtype]:
    """A byte for each weight of the LLM's linear layers, by its name in the parts: what it takes once it is
    quantised."""
    linear = {module for module in model.llm.modules() if isinstance(module, nn.Linear)}
    return {f"{name}.weight": torch.int8 for name, module in parts.named_modules() if module in linear}


# ---- quantisation ----


def only_llm(quantisation: Any, model: nn.Module) -> Any:
    """A quantization_config of transformers that leaves alone all but the linear layers of a FusionModel's LLM: what is
    its own, adapters, and the LLM's head, as transformers does by itself. PlacingError for one that cannot leave
    anything alone."""
    if isinstance(quantisation, Mapping):
        quantisation = AutoQuantizationConfig.from_dict(dict(quantisation))
    key = next((key for key in ("llm_int8_skip_modules", "modules_to_not_convert") if hasattr(quantisation, key)), None)
    if key is None:
        raise PlacingError(
            f"quantization_config: {type(quantisation).__name__} has no list of modules to leave alone; take another"
        )
    names = {module: name for name, module in model.named_modules()}
    own = [name for name, _ in model.named_children() if name != "llm"]
    made = copy.deepcopy(quantisation)
    setattr(
        made,
        key,
        [*own, names[model.llm.get_output_embeddings()], r".*\.lora_[AB]", *(getattr(quantisation, key) or [])],
    )
    return made


def check_quantiser(quantisation: Any, places: Mapping[str, Place] | None) -> None:
    """PlacingError where the library that quantises is missing, or cannot work on these devices."""
    try:
        AutoHfQuantizer.from_config(quantisation, pre_quantized=False).validate_environment(
            device_map=places, weights_only=True
        )
    except (ImportError, RuntimeError, ValueError) as error:
        said = shorten(str(error), 300, placeholder=" ...")
        raise PlacingError(f"quantization_config: {type(quantisation).__name__} cannot be used here ({said})") from None


@contextmanager
def one_line(quantisation: Any) -> Iterator[None]:
    """Inside, weights that cannot be quantised are a PlacingError; what transformers knows of them it has logged by
    then."""
    try:
        yield
    except RuntimeError as error:
        if quantisation is None or "conversion" not in str(error):
            raise
        kind = type(quantisation).__name__
        raise PlacingError(
            f"quantization_config: {kind} cannot quantise these weights here; the report above says why"
        ) from None


def check_quantised(model: nn.Module, quantisation: Any) -> None:
    """PlacingError where a quantisation has left all weights of a FusionModel's LLM as they are."""
    if all(
        type(p) is nn.Parameter and type(p.data) is torch.Tensor and p.is_floating_point()
        for p in model.llm.parameters()
    ):
        kind, family = type(quantisation).__name__, model.config.text_config.model_type
        raise PlacingError(
            f"quantization_config: {kind} found no linear layers that it could quantise in this {family}: take "
            "another, or none"
        )


# ---- the model's side ----

PLACING = ("device_map", "max_memory", "offload_folder", "quantization_config")
"""Arguments of `from_pretrained` that say where weights go, and what becomes of them."""


class Placeable:
    """What a FusionModel knows of where its weights are, and in which form; and how others are loaded for it."""

    @property
    def device(self) -> torch.device:
        """Where rows enter and leave: that of the new parts, wherever the LLM's layers are."""
        return self.control_embed.weight.device

    @property
    def offloaded(self) -> bool:
        """Whether some of the weights are not in memory, or not on the device that computes with them."""
        return any(p.is_meta for p in self.parameters())

    @property
    def spread(self) -> bool:
        """Whether hooks move rows to where the weights are: over several devices, or from the CPU or the disk."""
        return hasattr(self, "hf_device_map")

    @property
    def quantised(self) -> bool:
        """Whether the LLM's weights were quantised when they were loaded."""
        return bool(getattr(self, "is_quantized", False))

    def refuse_unless_whole(self, what: str) -> None:
        """ValueError in one line for a model with weights that are quantised, or spread."""
        if self.quantised or self.spread:
            how = (
                "quantised, load it without quantization_config"
                if self.quantised
                else "spread or offloaded, load it without device_map"
            )
            raise ValueError(f"{what}: this model's weights are {how}")

    @classmethod
    def _placing(cls, config: PreTrainedConfig, how: dict) -> dict:
        """Arguments of Hugging Face for a device map that leaves nothing out, and for quantising the LLM alone."""
        wanted, quantisation = how.get("device_map"), how.get("quantization_config")
        if wanted is None and quantisation is None:
            return {}
        with torch.device("meta"):
            bare = cls(copy.deepcopy(config))
        placing = {} if quantisation is None else {"quantization_config": only_llm(quantisation, bare)}
        if wanted is not None:
            dtype = how.get("dtype") if isinstance(how.get("dtype"), torch.dtype) else config.dtype
            placing["device_map"] = whole_map(bare, wanted, how.get("max_memory"), dtype, quantisation is not None)
            if "disk" in placing["device_map"].values() and how.get("offload_folder") is None:
                raise PlacingError(
                    "device_map: some of the weights go to the disk: give offload_folder=, for what cannot stay in "
                    "its file"
                )
        if quantisation is not None:
            check_quantiser(placing["quantization_config"], placing.get("device_map"))
        return placing | {"max_memory": None}

    def placed(self, **how) -> PreTrainedModel:
        """This model with its weights spread over devices, or its LLM's quantised: itself where that is not asked for.
        how: device_map, max_memory, offload_folder and quantization_config, as of `from_pretrained`."""
        if how.get("device_map") is None and how.get("quantization_config") is None:
            return self
        made = type(self).from_pretrained(
            None, config=self.config, state_dict=self.state_dict(), dtype=self.dtype, **how
        )
        made.generation_config = self.generation_config
        return made
