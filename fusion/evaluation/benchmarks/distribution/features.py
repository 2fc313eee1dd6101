"""Features of images, one row each, by Inception (for FID), DINOv2 and CLIP, from given weights.

Weights are downloaded only where a hub id is given.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, CLIPModel, Dinov2Model, PreTrainedModel, PreTrainedTokenizerBase

from fusion.evaluation.benchmarks.judges.detector import CLIP, IMAGENET, clip_pixels, load_weights, standardized
from fusion.sequence.images import open_image

# The TensorFlow weights that FID is defined by, in torch-fidelity's form: weights-inception-2015-12-05-6726825d.pth.
INCEPTION_SHA256 = "6726825d"
DINO_SIDE = 224

Network = Callable[[list[Image.Image]], Float[Tensor, "b d"]]


def features(paths: Sequence[Path], network: Network, batch: int) -> Float[Tensor, "n d"]:
    """Compute the features of all images in their order, fp32 on the CPU; BadImage where one cannot be read."""
    rows = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(paths), batch), unit="batches", leave=False):
            rows.append(network([open_image(path) for path in paths[start : start + batch]]).float().cpu())
    return torch.cat(rows)


def squared(
    image: Image.Image, side: int, mean: Sequence[float], deviation: Sequence[float]
) -> Float[Tensor, "3 side side"]:
    """Resize a whole image to a square, bicubically, and normalize its channels for a network."""
    levels = np.array(image.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    return standardized(torch.from_numpy(levels).permute(2, 0, 1) / 255, mean, deviation)


# ---- Inception ----


def load_inception(file: str, device: str) -> Network:
    """Load FID's Inception, whose features are its pool of 2048 numbers, by torch-fidelity.

    It resizes as TensorFlow 1 did. Raises ValueError, in one line, where torch-fidelity is not installed, or the file
    is another: loading it executes code, and scores of other weights are not FID.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ValueError(f"torch-fidelity is not installed ({error}): pip install torch-fidelity") from None
    try:
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None
    if not digest.startswith(INCEPTION_SHA256):
        said = f"weights-inception-2015-12-05-{INCEPTION_SHA256}.pth of torch-fidelity's releases"
        raise ValueError(f"{file}: not FID's weights (SHA-256 {digest[:8]}); give {said}")
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=file).to(
        device
    )

    def look(images: list[Image.Image]) -> Tensor:
        levels = [
            torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(device) for image in images
        ]  # each in its own size
        return torch.cat([network(one)[0] for one in levels])

    return look


# ---- DINOv2 ----


def load_dino(name: str, device: str) -> Network:
    """Load a DINOv2, whose features are its class token, as in dgm-eval.

    Stein et al., arXiv 2306.04675, use facebook/dinov2-large.
    """
    network = load_weights(Dinov2Model, name, "a DINOv2 (facebook/dinov2-large is FD-DINO's)").eval().to(device)

    def look(images: list[Image.Image]) -> Tensor:
        return network(torch.stack([squared(image, DINO_SIDE, *IMAGENET) for image in images]).to(device)).pooler_output

    return look


# ---- CLIP ----


@dataclass(frozen=True)
class Clip:
    """A CLIP with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def side(self) -> int:
        """The side of its input images, in pixels."""
        return self.model.config.vision_config.image_size

    def whole(self, images: list[Image.Image]) -> Float[Tensor, "b d"]:
        """Compute embeddings of whole images, of unit length, as CMMD uses them."""
        return self._directions([squared(image, self.side, *CLIP) for image in images])

    def middle(self, images: list[Image.Image]) -> Float[Tensor, "b d"]:
        """Compute embeddings of images cropped to their centre square, of unit length, as CLIP was trained."""
        return self._directions([clip_pixels(image, self.side) for image in images])

    @torch.inference_mode()
    def words(self, texts: list[str]) -> Float[Tensor, "b d"]:
        """Compute embeddings of texts, of unit length; texts longer than CLIP's context are truncated."""
        longest = self.model.config.text_config.max_position_embeddings
        read = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(
            self.model.device
        )
        found = self.model.get_text_features(read["input_ids"], read["attention_mask"]).pooler_output
        return F.normalize(found.float(), dim=-1).cpu()

    def _directions(self, pixels: list[Tensor]) -> Tensor:
        return F.normalize(
            self.model.get_image_features(torch.stack(pixels).to(self.model.device)).pooler_output.float(), dim=-1
        )


def load_clip(name: str, device: str) -> Clip:
    """Load a CLIP from a folder or hub id, safetensors only; ValueError, in one line, where there is none."""
    model = load_weights(CLIPModel, name, "a CLIP (openai/clip-vit-large-patch14-336 is CMMD's)").eval().to(device)
    try:
        return Clip(model, AutoTokenizer.from_pretrained(name))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{name}: CLIP's tokenizer cannot be read ({' '.join(str(error).split())[:120]})") from None
