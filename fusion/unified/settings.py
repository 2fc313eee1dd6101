"""Settings of a unified model, each declared once: name, type, default, choices or bounds, documentation.

`NetworkSettings` is what its network is made by, and what config.json keeps; `ModelSettings` adds the images that it
reads and writes, and is what `from_llm`, the section `model:` of a run's YAML and `fusion plan` take; `SavedSettings`
is all of config.json but the LLM's own config.
"""

import math
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any, Literal, get_args

from fusion.common.checked import Checked, SettingError, about, checked

FORMAT_VERSION = 1
Part = Literal["attention", "norms", "feed_forward"]
PARTS = get_args(Part)
"""What of a layer can be split: the projections of attention, all norms, the feed-forward or its experts."""
LLM_BOUNDS = {"num_hidden_layers": 1024, "hidden_size": 65536, "vocab_size": 2**24}
"""The largest numbers of an LLM's config that are believed."""
WIDEST_PATCH = 2**20  # numbers
BEFORE = {"target": "x", "embed": "linear", "head": "linear"}
"""What a config.json from before these were settings means by leaving them out."""


def spread_reads(layers: int, count: int = 6) -> list[int]:
    """Choose LLM layers to read, by number from 1: `count` of them, evenly from 0.3 to 0.9 of the depth. A middle layer
    knows what words mean; the last ones only say which token comes next."""
    return sorted({max(1, round(layers * (0.3 + 0.6 * i / max(count - 1, 1)))) for i in range(count)})


@checked
class NetworkSettings(Checked):
    """What the network of a unified model is made by, beside its LLM and codec. SettingError for what cannot be."""

    patch_size: int = field(default=8, metadata=about("side of a patch, in latent pixels", least=1, most=256))
    time: Literal["adaln", "added", "none"] = field(
        default="adaln",
        metadata=about("how time is told: adaln modulates every layer (PixArt), added (BAGEL), none (FuseDiT)"),
    )
    positions: Literal["axial", "shared", "axial+sincos"] = field(
        default="axial",
        metadata=about(
            "axial rotary, one index shared by an image plus 2-D sincos (all that gpt2 and opt can), or both"
        ),
    )
    target: Literal["x", "v", "eps"] | None = field(
        default=None, metadata=about("what the flow head predicts; None is x in pixel space (JiT), v for latents")
    )
    embed: Literal["linear", "linear+reference", "conv"] | None = field(
        default=None,
        metadata=about(
            "of patches: +reference adds that of the edited image, conv looks at the whole image; "
            "None is conv in pixel space, linear for latents"
        ),
    )
    head: Literal["linear", "conv", "conv+reference"] | None = field(
        default=None,
        metadata=about(
            "what draws patches: conv is better for large ones, conv+reference sees the edited image too; "
            "None is conv in pixel space, linear for latents"
        ),
    )
    path: Literal["linear", "vp"] = field(
        default="linear", metadata=about("from image to noise (fusion.flow.matching)")
    )
    mode: Literal["shared", "mot", "frozen"] = field(
        default="shared",
        metadata=about(
            "weights of images: shared, the LLM's (Transfusion); mot, copies of their own (LMFusion, BAGEL); "
            "frozen, an image stream beside an LLM that never changes (FuseDiT)"
        ),
    )
    split: list[Part] = field(
        default_factory=lambda: list(PARTS),
        metadata=about("of mode mot: the parts of layers that images have copies of"),
    )
    image_width: int | None = field(
        default=None,
        metadata=about("of mode frozen: width of the image stream; None is the LLM's", least=4, most=65536),
    )
    deep: Literal["kv", "hidden"] = field(
        default="kv",
        metadata=about(
            "of mode frozen: what the image stream reads of each layer of the LLM: its keys and values (FuseDiT), or "
            "hidden states by projections that learn (Playground v3)"
        ),
    )

    see: Literal["projected", "none"] = field(
        default="projected",
        metadata=about(
            "of mode frozen: whether text sees images, by the image stream's projections, or never; then what the LLM "
            "reads is computed once, and the stream has its own depth"
        ),
    )
    reads: list[int] | None = field(
        default=None,
        metadata=about(
            "of see=none: layers of the LLM, from 1, whose output the image stream reads, a layer of its own for each; "
            "None is six from 0.3 to 0.9 of the depth",
            least=1,
            most=1024,
        ),
    )

    image_size: list[int] | None = field(
        default=None,
        metadata=about(
            "of see=none: width and height of images, in pixels, where none are asked for; None is a square of 256 or "
            "max_side",
            least=1,
            most=65536,
        ),
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.split or len(set(self.split)) < len(self.split):
            raise SettingError(f"split={self.split}: name at least one of {', '.join(PARTS)}, each once")
        if self.mode != "frozen":
            instead = f"is for mode='frozen': in {self.mode!r} "
            if self.deep != "kv":
                raise SettingError(f"deep={self.deep!r} {instead}there is no image stream beside the language model")
            if self.see != "projected":
                raise SettingError(f"see={self.see!r} {instead}text always sees images")
            if self.image_width is not None:
                raise SettingError(f"image_width={self.image_width} {instead}images are as wide as the language model")
        if self.see == "none" and self.deep != "kv":
            raise SettingError(f"deep={self.deep!r} is for see='projected': see='none' reads what `reads` says")
        if self.image_size is not None and (self.see != "none" or len(self.image_size) != 2):
            raise SettingError(f"image_size={self.image_size} is for see='none': give width and height in pixels")
        if self.reads is not None and (self.see != "none" or not self.reads or sorted(set(self.reads)) != self.reads):
            raise SettingError(
                f"reads={self.reads} is for see='none': name layers of the LLM, from 1, in ascending order"
            )

    def resolved(self, downsample: int) -> "NetworkSettings":
        """The same with what is None chosen by the codec: `downsample` is 1 in pixel space."""
        target, kind = ("x", "conv") if downsample == 1 else ("v", "linear")
        return replace(self, target=self.target or target, embed=self.embed or kind, head=self.head or kind)

    def check_llm(self, llm) -> None:
        """SettingError for an LLM, by its config, that is larger than any or narrower than the image stream."""
        for name, most in LLM_BOUNDS.items():
            value = getattr(llm, name, 1)
            if type(value) is not int or not 1 <= value <= most:
                raise SettingError(f"text_config.{name}={value!r}: give an integer from 1 to {most}")
        if self.reads is not None and not 1 <= min(self.reads) <= max(self.reads) <= llm.num_hidden_layers:
            raise SettingError(f"reads={self.reads}: the language model has layers 1 to {llm.num_hidden_layers}")
        if self.image_width is not None and self.image_width > llm.hidden_size:
            raise SettingError(
                f"image_width={self.image_width}: the image stream is at most as wide as the language model, "
                f"{llm.hidden_size}"
            )


@checked
class ModelSettings(NetworkSettings):
    """All that is chosen when an LLM is extended: the network, and the images that are read and written."""

    max_side: int = field(default=1024, metadata=about("longest side of an image, in pixels", least=1, most=65536))
    max_patches: int = field(default=4096, metadata=about("most patches of an image", least=1, most=2**20))

    def __post_init__(self):
        super().__post_init__()
        # Of config.json this is not asked: folders may have been written before it was.
        if self.mode != "mot" and set(self.split) != set(PARTS):
            raise SettingError(
                f"split={self.split} is for mode='mot': in {self.mode!r} images have no copies of modules"
            )


@checked
class Lora(Checked):
    """Low-rank adapters of the LLM (fusion.unified.lora). Raises SettingError for what cannot be."""

    rank: int = field(default=8, metadata=about("of what is added to a matrix", least=1, most=4096))
    alpha: float = field(
        default=16.0, metadata=about("what is added counts alpha / rank times", above=0, most=1_000_000)
    )
    targets: Literal["attention", "linear"] = field(
        default="linear",
        metadata=about("projections of attention, or all linear layers of a layer; experts in one tensor are none"),
    )


@checked
class SavedSettings(NetworkSettings):
    """What config.json keeps beside the LLM's own config. Raises SettingError for what cannot be."""

    channels: int = field(default=3, metadata=about("of the codec's latents", least=1, most=4096))
    downsample: int = field(
        default=1, metadata=about("pixels per side of a latent pixel; 1 is pixel space", least=1, most=1024)
    )
    lora: dict | None = field(
        default=None, metadata=about("adapters of an LLM that is frozen but for them, as fields of Lora")
    )
    base: str | None = field(
        default=None, metadata=about("where the LLM's own weights lie if they are not in the model's folder")
    )
    base_weights: str | None = field(default=None, metadata=about("fingerprint of the weights in base"))
    stop_ids: list[int] = field(
        default_factory=list,
        metadata=about("of see=none: token ids that end a turn of the LLM", least=0, most=2**31 - 1),
    )
    control_start: float | None = field(
        default=None,
        metadata=about(
            "log of a control token's probability before it has learned anything; None: its logit is 0, as in older "
            "folders",
            least=-100,
            most=0,
        ),
    )
    preamble: list[int] = field(
        default_factory=list,
        metadata=about(
            "of see=none: token ids that chats begin with, which images do not read", least=0, most=2**31 - 1
        ),
    )
    vocab_base: int = field(default=0, metadata=about("id of the first control token", least=0, most=2**31 - 1))
    control_tokens: int = field(default=3, metadata=about("how many control tokens there are", least=1, most=1024))
    position_scale: float = field(default=1.0, metadata=about("factor on sincos features", least=0))
    position_base: float = field(
        default=10000.0, metadata=about("the longest sincos wave is nearly this many times the shortest", above=0)
    )
    position_wave: float = field(default=2 * math.pi, metadata=about("shortest sincos wave, in patches", above=0))
    format_version: int = field(default=FORMAT_VERSION, metadata=about("of the folder"))

    def __post_init__(self):
        super().__post_init__()
        if self.format_version != FORMAT_VERSION:
            raise SettingError(
                f"format_version={self.format_version}: this fusion reads {FORMAT_VERSION}: "
                "save the model again with this version"
            )
        if self.channels * self.patch_size**2 > WIDEST_PATCH:
            raise SettingError(
                f"patch_size={self.patch_size}: a patch of {self.channels} channels has more than {WIDEST_PATCH} "
                "numbers: give a smaller one"
            )
        if self.lora is not None:
            check_lora(self.lora, self.mode)


def check_lora(values: Mapping[str, Any], mode: str) -> None:
    """SettingError for fields of Lora that cannot be, or do not go with the model's mode."""
    try:
        Lora.of(values)
    except SettingError as error:
        raise SettingError(f"lora.{error}") from None
    if mode != "shared":
        raise SettingError(f"lora={dict(values)} is for mode='shared': in {mode!r} images have weights of their own")
