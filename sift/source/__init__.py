"""Batches of the wrapped loader, with the indices of their samples."""

from .attributes import WrappedAttributes as WrappedAttributes
from .indexed import NO_INDEX as NO_INDEX
from .indexed import Indexed as Indexed
from .planned import number_of_batches as number_of_batches
from .source import Source as Source
from .source import length_of as length_of
