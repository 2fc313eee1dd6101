"""Sources of data in the formats that people bring, and their mixture."""

from fusion.data.sources.files import Chat, Interleaved, PlainText
from fusion.data.sources.folders import EditPairs, ImageFolder
from fusion.data.sources.forms import Captions, Fit
from fusion.data.sources.mixture import Mixture, Source
from fusion.data.sources.sample import BadSample, Sample
from fusion.data.sources.split import Split, split_of
from fusion.data.sources.stream import Stream

__all__ = [
    "BadSample",
    "Captions",
    "Chat",
    "EditPairs",
    "Fit",
    "ImageFolder",
    "Interleaved",
    "Mixture",
    "PlainText",
    "Sample",
    "Source",
    "Split",
    "Stream",
    "split_of",
]
