"""Measure rank-8 adapters on all linear layers of SmolLM2-135M: memory, size on disk, effect of merging.

Usage: `python -m bench.lora`

The model has exactly SmolLM2-135M's shape, with random weights; images are 128 x 128 pixels in patches of 8, 256 tokens
each, in two rows of 1,024 tokens, with activation checkpointing. Memory is the growth of the process that trains for
two steps of fusion.training.trainer's own, as in bench.plan.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from bench import measure
from bench.plan import growth
from fusion.recipes import unified
from fusion.recipes.tokenizer import train_tokenizer
from fusion.unified.lora import Lora
from fusion.worlds.shapes import plain_text

MEMORY, DISK, MERGED = 6.0, 20.0, 1e-5  # targets: GiB, MB, and of a standard deviation of the logits
IMAGES = 16
SETTINGS = [
    "model.patch_size=8",
    "model.embed=linear",
    "model.head=linear",
    "model.lora={rank: 8, targets: linear}",
    "data.sources=[{kind: images}]",
    "data.max_side=128",
    "data.held_out=0.1",
    "packing.length=1024",
    "packing.rows=2",
    "packing.lookahead=4",
    "training.precision=fp32",
    "training.recompute=true",
    "training.workers=0",
    "training.validate_every=0",
    "training.sample_every=0",
    "training.optim.warmup=1",
    "samples.held_out=0",
]


def save_llm(folder: Path) -> None:
    """Save a random LLM of SmolLM2-135M's shape, and a tokenizer with fewer tokens than its vocabulary."""
    draw = np.random.default_rng(0)
    tokenizer = train_tokenizer("bpe", [plain_text(draw) for _ in range(200)], 400)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_theta=100000.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_images(folder: Path) -> None:
    """Save IMAGES images of noise with captions (metadata.jsonl) to a folder."""
    draw = np.random.default_rng(0)
    for number in range(IMAGES):
        Image.fromarray(draw.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    rows = (json.dumps({"file_name": f"{number}.png", "text": f"image {number}"}) for number in range(IMAGES))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")


@torch.inference_mode()
def saved_and_merged(llm: Path, folder: Path) -> dict[str, float]:
    """Return the sizes on disk without the language model, and the error of merging the adapters.

    The adapters have random weights here. The error is the largest difference of the logits, in their standard
    deviations.
    """
    model = unified.build(unified.Model(llm=str(llm), embed="linear", head="linear", lora=Lora(rank=8)))
    for name, p in model.model.named_parameters():
        if "lora_B" in name:
            p.normal_(std=0.02)
    model.save_pretrained(folder, base=str(llm))
    tensors = load_file(folder / "model.safetensors")
    adapters = sum(tensor.nbytes for name, tensor in tensors.items() if "lora_" in name)
    ids = torch.randint(0, 400, (2, 128), generator=torch.Generator().manual_seed(0))
    apart = model.model(input_ids=ids).logits
    model.merge_lora()
    far = (model.model(input_ids=ids).logits - apart).abs().max() / apart.std()
    whole = sum(tensor.nbytes for tensor in tensors.values())
    sizes = {"adapters, MB": round(adapters / 1e6, 1), "with what images need, MB": round(whole / 1e6, 1)}
    return sizes | {"merged differs by, std": float(f"{far:.1e}")}


def main() -> int:
    """Measure, print and write the figures; return 1 if a target is missed."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as place:
        llm, images, run, model = (Path(place, name) for name in ("llm", "images", "run", "model"))
        images.mkdir()
        save_llm(llm)
        save_images(images)
        grown = growth([f"model.llm={llm}", f"data.path={images}", f"run={run}", *SETTINGS], {})
        figures = {"training grows by, GiB": round(grown / 2**30, 2)} | saved_and_merged(llm, model)
    print(", ".join(f"{name} {value}" for name, value in figures.items()))
    targets = {"GiB": MEMORY, "MB": DISK, "std": MERGED}
    print(measure.write("lora", {"settings": SETTINGS, "targets": targets, "figures": figures}))
    missed = (
        figures["training grows by, GiB"] > MEMORY
        or figures["adapters, MB"] > DISK
        or figures["merged differs by, std"] > MERGED
    )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
