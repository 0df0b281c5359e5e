"""Situations, one file for each kind of training.  Their import registers them."""

from . import attributes as attributes
from . import batches as batches
from . import changes as changes
from . import compiled as compiled
from . import draws as draws
from . import dtypes as dtypes
from . import failures as failures
from . import generators as generators
from . import hooks as hooks
from . import initial as initial
from . import loops as loops
from . import loss_state as loss_state
from . import moments as moments
from . import parametrized as parametrized
from . import passes as passes
from . import ranks as ranks
from . import shared as shared
from . import structures as structures
from . import ways as ways
