"""GenEval's judge through transformers: Mask2Former finds objects, CLIP classifies their colours.

Its scores are labelled "HF detector".

The official judge is mmdet's Mask2Former (Swin-S, COCO instances) and open_clip's ViT-L/14 of OpenAI. Pre- and
postprocessing follow it (mmdet 2.27, open_clip, clip_benchmark). Detector weights of transformers come from another
training than mmdet's, and nothing runs in half precision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPreTrainedModel

from fusion.evaluation.benchmarks.common.detections import Found
from fusion.evaluation.benchmarks.judges.geneval_rules import CLASSES, COLOURS, Rules, kept

SHORT, LONG, STRIDE = (
    800,
    1333,
    32,
)  # pixels: most of the shorter and of the longer side of the detector's input, and their divisor after padding
MOST = 100  # most objects of an image, of all classes together
FLOOR = 0.05  # objects of lower confidence are dropped: no threshold in use is as low

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of channels in [0, 1]
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

PROMPTS = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


class Mask2Former(Mask2FormerPreTrainedModel):
    """Mask2FormerForUniversalSegmentation without its loss, which would need scipy; the weights have the same names."""

    _keys_to_ignore_on_load_unexpected = [r"criterion\."]

    def __init__(self, config: Mask2FormerConfig):
        super().__init__(config)
        self.model = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.post_init()

    def forward(
        self, pixels: Float[Tensor, "1 3 h w"]
    ) -> tuple[Float[Tensor, "q classes_and_none"], Float[Tensor, "q h4 w4"]]:
        """Return logits of every query's class, the last being none, and of its mask at a quarter of the size."""
        out = self.model(pixels, output_hidden_states=True)
        return self.class_predictor(out.transformer_decoder_intermediate_states[-1].transpose(0, 1))[
            0
        ], out.masks_queries_logits[-1][0]


@dataclass(frozen=True)
class Instances:
    """Objects found in an image.

    labels: indices into CLASSES. scores: confidences. boxes: left, top, right, bottom in pixels. queries: each object's
    index into masks. masks: one for each query, of the image's size.
    """

    labels: list[int]
    scores: list[float]
    boxes: list[tuple[float, float, float, float]]
    queries: list[int]
    masks: Bool[np.ndarray, "q h w"]


class Judge:
    """GenEval's judge: a detector and a CLIP; name: of the judge, for its scores.

    Raises ValueError unless the detector has as many classes as CLASSES.
    """

    def __init__(self, detector: Mask2Former, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, name: str):
        if detector.config.num_labels != len(CLASSES):
            raise ValueError(
                f"the detector knows {detector.config.num_labels} classes; GenEval needs one of COCO's "
                f"{len(CLASSES)} things"
            )
        self.detector, self.clip, self.tokenizer, self.name = detector.eval(), clip.eval(), tokenizer, name
        self.classifier = cache(self._classifier)

    def __call__(self, image: Image.Image, metadata: Mapping, rules: Rules) -> dict[str, list[Found]]:
        """Return the objects of an RGB image by class; those whose colours the prompt asks for have one.

        metadata: the prompt's line of the prompts file.
        """
        seen = self.instances(image)
        found, masks = {}, {}
        for label, score, box, query in zip(seen.labels, seen.scores, seen.boxes, seen.queries, strict=True):
            if score > FLOOR:
                found.setdefault(CLASSES[label], []).append(one := Found(box, score))
                masks[one] = seen.masks[query]
        for name, count in coloured(metadata).items():
            if name in found:
                asked = kept(found[name], metadata["tag"], rules)[:count]
                colours = dict(
                    zip(asked, self.colours(image, [(one.box, masks[one]) for one in asked], name, rules), strict=True)
                )
                found[name] = [replace(one, colour=colours.get(one)) for one in found[name]]
        return found

    @torch.inference_mode()
    def instances(self, image: Image.Image) -> Instances:
        """Detect up to MOST objects in an RGB image."""
        pixels, (height, width) = detector_pixels(image)
        classes, masks = self.detector(pixels.to(self.detector.device))
        masks = _resized(masks, pixels.shape[-2:])[:, :height, :width]
        return instances(classes.float(), _resized(masks, image.size[::-1]).float())

    @torch.inference_mode()
    def colours(self, image: Image.Image, objects: Sequence, name: str, rules: Rules) -> list[str]:
        """Classify the colour of each object, (box, mask), with CLIP; name: of the objects' class."""
        if not objects:
            return []
        side = self.clip.config.vision_config.image_size
        pixels = torch.stack([clip_pixels(cut_out(image, box, mask, rules), side) for box, mask in objects])
        features = F.normalize(self.clip.get_image_features(pixels.to(self.clip.device)).pooler_output, dim=-1)
        return [COLOURS[place] for place in (features @ self.classifier(name)).argmax(dim=1).tolist()]

    def _classifier(self, name: str) -> Float[Tensor, "d colours"]:
        """Compute a unit-length embedding for each colour of a class of objects: the mean of its prompts'."""
        directions = []
        for colour in COLOURS:
            words = self.tokenizer(
                [prompt.format(colour=colour, name=name) for prompt in PROMPTS], padding=True, return_tensors="pt"
            )
            features = self.clip.get_text_features(
                words["input_ids"].to(self.clip.device), words["attention_mask"].to(self.clip.device)
            )
            directions.append(F.normalize(F.normalize(features.pooler_output, dim=-1).mean(dim=0), dim=0))
        return torch.stack(directions, dim=1)


def coloured(metadata: Mapping) -> dict[str, int]:
    """Return the classes whose colours a prompt asks for, and of how many objects."""
    clauses = [clause for clause in metadata["include"] if "color" in clause]
    return {
        name: max(clause["count"] for clause in clauses if clause["class"] == name)
        for name in (clause["class"] for clause in clauses)
    }


def load_judge(detector: str, clip: str, device: str | None = None) -> Judge:
    """Load a detector and a CLIP from folders or hub ids, safetensors only.

    Raises ValueError, in one line, where weights are missing or of another kind.
    """
    found = load_weights(
        Mask2Former,
        detector,
        "a Mask2Former of COCO's instances (facebook/mask2former-swin-small-coco-instance is one)",
    )
    seer = load_weights(CLIPModel, clip, "a CLIP (GenEval's is openai/clip-vit-large-patch14)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(clip)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{clip}: CLIP's tokenizer cannot be read ({_short(error)})") from None
    name = f"HF detector {Path(detector).name}, {Path(clip).name}"
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Judge(found.to(device), seer.to(device), tokenizer, name)


def load_weights(kind: type[PreTrainedModel], name: str, said: str) -> PreTrainedModel:
    """Load a model from a folder or hub id in fp32, safetensors only.

    said: what belongs there, for the ValueError, in one line, where weights are missing or of another kind.
    """
    try:
        if not isinstance(config := AutoConfig.from_pretrained(name), kind.config_class):
            raise ValueError(f"a {config.model_type} is there")
        model, notes = kind.from_pretrained(name, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{name}: not weights of {said}; give a folder or a hub id, with safetensors ({_short(error)})"
        ) from None
    if missing := sorted(notes["missing_keys"]):
        raise ValueError(f"{name}: not weights of {said}; {len(missing)} are missing, {missing[0]} among them")
    return model


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


# ---- before the detector, and behind it: as mmdet does it ----


def detector_pixels(image: Image.Image) -> tuple[Float[Tensor, "1 3 h w"], tuple[int, int]]:
    """Resize, normalize and pad an RGB image for the detector.

    The shorter side becomes SHORT, unless the longer would exceed LONG; padding is on the right and below. Returns the
    pixels, and height and width without the padding.
    """
    scale = min(LONG / max(image.size), SHORT / min(image.size))
    width, height = (int(side * scale + 0.5) for side in image.size)
    levels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)
    # Bilinear without antialiasing, back to whole levels: OpenCV's resize.
    levels = F.interpolate(levels[None], size=(height, width), mode="bilinear", align_corners=False).round()
    pixels = standardized(levels / 255, *IMAGENET)
    return F.pad(pixels, (0, -width % STRIDE, 0, -height % STRIDE)), (height, width)


def standardized(
    pixels: Float[Tensor, "*b 3 h w"], mean: Sequence[float], deviation: Sequence[float]
) -> Float[Tensor, "*b 3 h w"]:
    """Normalize channels in [0, 1] by a network's own mean and standard deviation."""
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]


def _resized(masks: Float[Tensor, "q h w"], size: tuple[int, int]) -> Float[Tensor, "q h2 w2"]:
    return F.interpolate(masks[None], size=tuple(size), mode="bilinear", align_corners=False)[0]


def instances(classes: Float[Tensor, "q classes_and_none"], masks: Float[Tensor, "q h w"]) -> Instances:
    """Select the most probable pairs of a query and a class, at most MOST.

    A score is the class's probability times the mask's mean probability within itself. masks: logits, of the image's
    size.
    """
    scores = classes.softmax(dim=-1)[:, :-1]
    best, places = scores.flatten().topk(min(MOST, scores.numel()))
    queries, labels = places // scores.shape[1], places % scores.shape[1]
    inside = masks > 0
    quality = (masks.sigmoid() * inside).flatten(1).sum(dim=1) / (inside.flatten(1).sum(dim=1) + 1e-6)
    boxes = [_box(mask) for mask in inside]
    return Instances(
        labels.tolist(),
        (best * quality[queries]).tolist(),
        [boxes[query] for query in queries.tolist()],
        queries.tolist(),
        inside.cpu().numpy(),
    )


def _box(mask: Bool[Tensor, "h w"]) -> tuple[float, float, float, float]:
    """Return the box around all true pixels, its right and bottom exclusive; zeros for an empty mask."""
    across, down = mask.any(dim=0).nonzero()[:, 0].tolist(), mask.any(dim=1).nonzero()[:, 0].tolist()
    return (float(across[0]), float(down[0]), across[-1] + 1.0, down[-1] + 1.0) if across else (0.0, 0.0, 0.0, 0.0)


# ---- before CLIP: as GenEval and open_clip do it ----


def cut_out(image: Image.Image, box: Sequence[float], mask: Bool[np.ndarray, "h w"], rules: Rules) -> Image.Image:
    """Isolate an object for CLIP: on the background that the rules ask for, and cropped to its box if they say so."""
    around = image if rules.bgcolor == "original" else Image.new("RGB", image.size, rules.bgcolor)
    alone = Image.composite(image, around, Image.fromarray(mask))
    return alone.crop(box) if rules.crop else alone


def clip_pixels(image: Image.Image, side: int) -> Float[Tensor, "3 side side"]:
    """Resize an image's shorter side to `side`, bicubically, crop the centre square, and normalize it for CLIP."""
    width, height = image.size
    width, height = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    left, top = round((width - side) / 2), round((height - side) / 2)
    middle = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    return standardized(torch.from_numpy(np.array(middle, dtype=np.float32)).permute(2, 0, 1) / 255, *CLIP)
