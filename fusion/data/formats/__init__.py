"""Data sources in common formats (image folders, tables, text, hub data sets), and their mixture."""

from fusion.data.formats.builtin_world import WorldSource
from fusion.data.formats.config import DataConfig, SourceConfig, open_mixture, open_sources
from fusion.data.formats.documents import Chat, Interleaved, PlainText
from fusion.data.formats.hub import Hub
from fusion.data.formats.image_folders import EditPairs, ImageFolder
from fusion.data.formats.mixture import Mixture, Source
from fusion.data.formats.row_parsers import Captions, Fit
from fusion.data.formats.sample import BadSample, Sample
from fusion.data.formats.split import Split, split_of
from fusion.data.formats.stream import Stream

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
