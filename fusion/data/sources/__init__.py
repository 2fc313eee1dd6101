"""Sources of data in the formats that people bring, and their mixture."""

from fusion.data.sources.config import DataConfig, SourceConfig, open_mixture, open_sources
from fusion.data.sources.files import Chat, Interleaved, PlainText
from fusion.data.sources.folders import EditPairs, ImageFolder
from fusion.data.sources.forms import Captions, Fit
from fusion.data.sources.hub import Hub
from fusion.data.sources.mixture import Mixture, Source
from fusion.data.sources.sample import BadSample, Sample
from fusion.data.sources.split import Split, split_of
from fusion.data.sources.stream import Stream
from fusion.data.sources.world import WorldSource

__all__ = [
    "BadSample",
    "Captions",
    "Chat",
    "DataConfig",
    "EditPairs",
    "Fit",
    "Hub",
    "ImageFolder",
    "Interleaved",
    "Mixture",
    "PlainText",
    "Sample",
    "Source",
    "SourceConfig",
    "Split",
    "Stream",
    "WorldSource",
    "open_mixture",
    "open_sources",
    "split_of",
]
