"""FusionConfig: the config.json of a saved model, checked whenever it is made, read or changed."""

import copy
from dataclasses import fields
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from fusion.common.checked import SettingError, shown, takes
from fusion.unified.settings import BEFORE, SavedSettings, spread_reads

FOREIGN = (
    frozenset(vars(PreTrainedConfig()))
    | frozenset(vars(GenerationConfig()))
    | {"attn_implementation", "experts_implementation", "per_layer_config", "quantization_config"}
    | {"auto_map", "tie_word_embeddings"}
)
"""What any config of Hugging Face may hold, and whatever reads or writes one may set."""


class FusionConfig(PreTrainedConfig):
    """Everything that rebuilds a FusionModel: the LLM's own config and, as attributes,
    fusion.unified.settings.SavedSettings.

    A setting of None that the codec decides is resolved. Raises SettingError, one line, for values that cannot be, and
    for names that are neither settings nor Hugging Face's.
    """

    model_type = "fusion"
    sub_configs = {"text_config": AutoConfig}

    @takes(SavedSettings)
    def __init__(self, text_config=None, **settings):
        """Check and keep the settings. text_config: the LLM's config or its dict, which is copied."""
        foreign = {name: settings.pop(name) for name in [*settings] if _is_foreign(name)}
        saved = SavedSettings.of(settings)
        self.text_config = _copied(text_config)
        self._keep(saved)
        super().__init__(**foreign)

    def _keep(self, saved: SavedSettings) -> None:
        for name, value in vars(saved.resolved(saved.downsample)).items():
            setattr(self, name, value)
        if self.text_config is not None:
            saved.check_llm(self.text_config)
            if saved.see == "none" and saved.reads is None:
                self.reads = spread_reads(self.text_config.num_hidden_layers)

    def check(self) -> None:
        """Raise SettingError for attributes that were set to what cannot be."""
        self._keep(SavedSettings(**{field.name: getattr(self, field.name) for field in fields(SavedSettings)}))

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Make a config from its JSON; settings that older folders lack are what they were then. Raises as it does."""
        made = super().from_dict({**BEFORE, **config_dict}, **kwargs)
        (made[0] if isinstance(made, tuple) else made).check()  # keyword arguments have been set by now
        return made

    @property
    def patch_width(self) -> int:
        """Numbers in a patch."""
        return self.channels * self.patch_size**2

    @property
    def image_layers(self) -> int:
        """Layers that rows of images pass through."""
        return len(self.reads) if self.see == "none" else self.text_config.num_hidden_layers  # type: ignore[union-attr]

    @property
    def stride(self) -> int:
        """Pixels per side of a patch."""
        return self.downsample * self.patch_size

    @property
    def context(self) -> int | None:
        """Tokens of clean stream that the decoder may read; longrope stays below the length at which its frequencies
        change."""
        rope = getattr(self.text_config, "rope_parameters", None) or {}
        original = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
        return original or getattr(self.text_config, "max_position_embeddings", None)


def _copied(text_config: Any) -> PreTrainedConfig | None:
    """The LLM's config, or what its dict makes. A copy: Hugging Face writes choices (attention, experts) into
    sub-configs, and a live LLM keeps its own. SettingError for anything else."""
    if text_config is None or isinstance(text_config, PreTrainedConfig):
        return copy.deepcopy(text_config)
    try:
        return AutoConfig.for_model(**text_config)
    except (TypeError, ValueError, StrictDataclassError) as error:
        said = " ".join(str(error).split())[:200]
        raise SettingError(f"text_config={shown(text_config)}: give the config of an LLM ({said})") from None


def _is_foreign(name: str) -> bool:
    return name.startswith("_") or name in FOREIGN or isinstance(getattr(PreTrainedConfig, name, None), str | property)
