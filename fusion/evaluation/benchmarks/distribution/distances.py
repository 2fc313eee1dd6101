"""Distances of feature sets: Fréchet, KID, precision and recall by torch-fidelity, CMMD; and CLIP score.

Features are rows, of generated images in the first argument and of real ones in the second. Functions raise ValueError,
in one line, where torch-fidelity is missing, or there are too few rows.
"""

from importlib import import_module
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

SUBSETS, SUBSET = 100, 1000  # KID's (Binkowski et al., arXiv 1801.01401): of at most so many images
NEIGHBOURS = 3  # of precision and recall (Kynkäänniemi et al., arXiv 1904.06991)
BANDWIDTH, SCALE = 10.0, 1000.0  # CMMD's (Jayasumana et al., arXiv 2401.09603)
ROWS = 4096  # of a kernel matrix at once


def frechet(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> float:
    """Compute the Fréchet distance between the Gaussians of both sets (Heusel et al., arXiv 1706.08500).

    It is FID for Inception's features, and FD-DINO for DINOv2's.
    """
    fid = fidelity("metric_fid")
    check(one, other, 2, "a Fréchet distance")
    # In fp64: with fp32 means, torch-fidelity's own sums lose the difference of close sets.
    statistics = [fid.fid_features_to_statistics(rows.double()) for rows in (one, other)]
    return fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID]


def kid(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"], seed: int = 0) -> tuple[float, float]:
    """Compute KID, the unbiased squared MMD of a cubic kernel: mean and standard deviation over random subsets."""
    metric = fidelity("metric_kid")
    size = min(SUBSET, len(one), len(other))
    check(one, other, 2, "KID")
    rows = [rows.double() for rows in (one, other)]
    found = metric.kid_features_to_metric(
        *rows, kid_subsets=SUBSETS, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    return found[metric.KEY_METRIC_KID_MEAN], found[metric.KEY_METRIC_KID_STD]


def precision_recall(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> tuple[float, float]:
    """Compute precision and recall (Kynkäänniemi et al., arXiv 1904.06991).

    They are the shares of generated images within the reach of real ones, and of real within that of generated: balls
    to the third nearest neighbour.
    """
    metric = fidelity("metric_prc")
    check(one, other, NEIGHBOURS + 1, "precision and recall")
    found = metric.prc_features_to_metric(one, other, prc_neighborhood=NEIGHBOURS, verbose=False)
    return found[metric.KEY_METRIC_PRECISION], found[metric.KEY_METRIC_RECALL]


def cmmd(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> float:
    """Compute CMMD: the squared MMD of a Gaussian kernel on CLIP embeddings of unit length.

    It is the biased estimate times 1000, as in google-research/cmmd.
    """
    one, other = one.double(), other.double()
    return SCALE * (mean_kernel(one, one) + mean_kernel(other, other) - 2 * mean_kernel(one, other))


def mean_kernel(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> float:
    """Return the mean of exp(-|x - y|^2 / (2 BANDWIDTH^2)) over all pairs of rows."""
    total = sum(
        torch.exp(-torch.cdist(rows, other).square() / (2 * BANDWIDTH**2)).sum().item() for rows in one.split(ROWS)
    )
    return total / (len(one) * len(other))


def clip_score(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Compute 100 max(cos, 0) of each image's embedding with its own text's, both of unit length.

    Hessel et al., arXiv 2104.08718, on the scale of torchmetrics.
    """
    return 100 * (images * texts).sum(-1).clamp(min=0)


def check(one: Tensor, other: Tensor, least: int, name: str) -> None:
    """Raise ValueError unless both sets have at least `least` rows; name: of the metric."""
    if min(len(one), len(other)) < least:
        raise ValueError(f"{name} needs {least} images on each side, not {len(one)} and {len(other)}")


def fidelity(name: str) -> ModuleType:
    """Import a module of torch-fidelity; ValueError, in one line, where it is not installed."""
    try:
        return import_module(f"torch_fidelity.{name}")
    except ImportError as error:
        raise ValueError(f"torch-fidelity is not installed ({error}): pip install torch-fidelity") from None
