"""Presets: named sampling parameters that a model's folder carries, in generation_config.json under `presets`.

    {"presets": {"fast": {"steps": 6, "solver": "dpmpp_2m", "guidance": 3.0}, "best": {...}}, ...}

A preset sets any of SAMPLING_PARAMETERS: those that decide what an image is like and what it costs. transformers keeps
the field from `from_pretrained` to `save_pretrained`, so that a model of AutoModel has it too, as
`model.generation_config.presets`. `fusion tune` finds presets.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from fusion.common.atomic import save
from fusion.generation.sampling import Sampling

SAMPLING_PARAMETERS = ("steps", "solver", "shift", "guidance", "image_guidance", "guidance_interval")
FILE = "generation_config.json"

Presets = dict[str, dict[str, Any]]
"""Sampling parameters by name, by the preset's name."""


def checked(presets: Any) -> Presets:
    """Presets ready for use, from what a file or a person says. Raises ValueError in one line for what is none."""
    if not isinstance(presets, Mapping):
        raise ValueError(
            f"presets are sampling parameters by name, by the preset's name, and not {type(presets).__name__}"
        )
    return {str(name): _checked(name, params) for name, params in presets.items()}


def _checked(name: str, params: Any) -> dict[str, Any]:
    if not isinstance(params, Mapping):
        raise ValueError(f"preset {name!r} is {type(params).__name__} and not sampling parameters by name")
    if unknown := sorted(set(params) - set(SAMPLING_PARAMETERS)):
        raise ValueError(
            f"preset {name!r}: {', '.join(unknown)} cannot be set by a preset; what can is "
            f"{', '.join(SAMPLING_PARAMETERS)}"
        )
    plain = {param: tuple(value) if isinstance(value, list) else value for param, value in params.items()}
    try:
        Sampling(**plain)
    except TypeError:
        raise ValueError(
            f"preset {name!r}: {json.dumps(plain, default=str)} are not values that the sampling parameters can have"
        ) from None
    except ValueError as error:
        raise ValueError(f"preset {name!r}: {error}") from None
    return plain


def resolved(params: Mapping[str, Any], presets: Any) -> dict[str, Any]:
    """Sampling parameters with those of the preset that their `preset` names, if one is named; what is said beside it
    has the last word.

    Raises ValueError in one line for a preset that is not among `presets`.
    """
    name, said = params.get("preset"), {param: value for param, value in params.items() if param != "preset"}
    if name is None:
        return said
    known = checked(presets)
    if not known:
        raise ValueError(
            f"preset={name!r}: this model has no presets; `fusion tune MODEL -o OUT --save` finds some and saves them"
        )
    if name not in known:
        raise ValueError(f"preset={name!r}: this model has {', '.join(sorted(known))}")
    return known[name] | said


def of(config: GenerationConfig) -> Any:
    """What a model's generation config says of presets."""
    return getattr(config, "presets", {})


def put(config: GenerationConfig, presets: Any) -> None:
    """Give a model's generation config these presets, in place of those that it has."""
    config.presets = checked(presets)
    config._from_model_config = (
        False  # of a config that stems from the model's, transformers reads no more than it knows
    )


def read(folder: str | Path) -> Presets:
    """The presets of a model's folder. Raises ValueError in one line where they cannot be read."""
    file = Path(folder) / FILE
    try:
        return checked(json.loads(file.read_text(encoding="utf-8")).get("presets", {}) if file.is_file() else {})
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from None


def write(folder: str | Path, presets: Any) -> Path:
    """Put presets into a model's folder, in place of those that it has; all else in the file stays, and it changes
    whole or not at all."""
    file = Path(folder) / FILE
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found.pop("_from_model_config", None)
    save((json.dumps(found | {"presets": checked(presets)}, indent=2, sort_keys=True) + "\n").encode(), file)
    return file
