"""Work of an iterator in the form in which it travels to actors."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

from loopwise.errors import InputError
from loopwise.extras import required

from ..protocol import Work
from ..unpicklable import culprit

with required("ray", "feed", "a loader with a group"):
    from ray import cloudpickle


@dataclass(frozen=True, slots=True)
class Shipment:
    """Work in two parts: the user's objects, which are sent again only if they have changed, and the rest."""

    user: bytes
    """Pickle of dataset, collate function and ``worker_init_fn``."""
    digest: bytes
    work: Work
    """The work without the user's objects."""
    batches: int
    """Number of batches for which each actor keeps memory."""


def ship(work: Work, batches: int) -> Shipment:
    """Pickle the work of an iterator.

    Raises:
        InputError: an object of the user cannot be pickled; the message names the attribute.
    """
    user = []
    for name in ("dataset", "collate_fn", "worker_init_fn"):
        value = getattr(work, name)
        try:
            user.append(cloudpickle.dumps(value))
        except Exception as error:
            raise _unpicklable(name, value, error) from None
    together = cloudpickle.dumps(tuple(user))
    rest = dataclasses.replace(work, dataset=None, collate_fn=_nothing, worker_init_fn=None)
    return Shipment(together, hashlib.blake2b(together, digest_size=16).digest(), rest, batches)


def _nothing(_: Any) -> Any:
    return None


def _unpicklable(name: str, value: Any, error: Exception) -> InputError:
    attribute, part = culprit(name, value, cloudpickle.dumps)
    return InputError(
        f"{attribute} of type {type(part).__name__}, which cannot be pickled ({error})",
        "a dataset, collate_fn and worker_init_fn that can be pickled, since they travel to other machines",
        "it holds an open file, a lock, a connection or a generator",
        f"open it in the worker when it is first used, or leave {attribute} out in __getstate__",
    )
