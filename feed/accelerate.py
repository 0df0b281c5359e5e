"""Accelerate's preparation of a loader, with ``RemoteDataLoader`` inside.

loader = prepare_loader(accelerator, RemoteDataLoader(dataset, batch_size=32, shuffle=True, num_workers=8))
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import IterableDataset

from loopwise.errors import InputError
from loopwise.extras import required

from . import rebuilt
from .loader import OPTIONS, RemoteDataLoader

with required("accelerate", "transformers", "prepare_loader"):
    from accelerate.data_loader import skip_first_batches as plain_skip_first_batches

OWN = ("group", "prefetch_bytes", "workers", "seeding", "on_crash")
"""Arguments that ``DataLoader`` does not have."""


def prepare_loader(accelerator: Any, loader: RemoteDataLoader[Any], **options: Any) -> Any:
    """Prepare a loader as ``accelerator.prepare(loader)`` does, but keep its workers.

    Accelerate shards the batches by rank, synchronises random states and moves batches to the device as ever; the batches
    are those of a ``DataLoader`` that it has prepared.  Pass models and optimizers to ``accelerator.prepare``.

    Args:
        accelerator: the ``accelerate.Accelerator``.
        loader: the loader, which is not iterated any more.
        options: of ``accelerator.prepare_data_loader``, such as ``device_placement``.

    Returns:
        The loader that Accelerate has made, with the attributes of ``loader``; ``state_dict`` and ``load_state_dict`` are in
        ``save_state`` and ``load_state`` if the accelerator has ``use_stateful_dataloader=True``.

    Raises:
        InputError: ``loader`` is no ``RemoteDataLoader``, or is prepared already; or Accelerate makes a loader of its own kind.
    """
    if not isinstance(loader, RemoteDataLoader) or hasattr(loader, "base_dataloader"):
        raise InputError(
            f"a loader of type {type(loader).__name__}",
            "a RemoteDataLoader that Accelerate has not prepared",
            "another loader, or one that accelerator.prepare has returned",
            "pass the RemoteDataLoader itself, and other loaders to accelerator.prepare",
        )
    rebuilt.discard(loader)
    own, configuration = {name: getattr(loader, name) for name in OWN}, accelerator.dataloader_config
    stateful = configuration.use_stateful_dataloader
    configuration.use_stateful_dataloader = False  # torchdata's loader would start workers at once
    try:
        prepared = accelerator.prepare_data_loader(loader, **options)
    finally:
        configuration.use_stateful_dataloader = stateful
    prepared.use_stateful_dataloader = stateful
    return load_by_workers(prepared, own)


def skip_first_batches(loader: Any, num_batches: int = 0) -> Any:
    """Return a prepared loader without its first batches, as ``accelerate.skip_first_batches`` does, but with its workers."""
    skipped = plain_skip_first_batches(loader, num_batches)
    base = getattr(loader, "base_dataloader", None)
    if not isinstance(base, RemoteDataLoader):
        return skipped
    return load_by_workers(skipped, {name: getattr(base, name) for name in OWN})


def load_by_workers(prepared: Any, own: dict[str, Any]) -> Any:
    """Put a ``RemoteDataLoader`` in the place of the ``DataLoader`` inside of a loader that Accelerate has made.

    Args:
        prepared: the loader, which is changed.
        own: arguments of ``RemoteDataLoader`` that ``DataLoader`` does not have.
    """
    base = getattr(prepared, "base_dataloader", None)
    if base is None:
        raise InputError(
            f"a {type(prepared).__name__} of Accelerate",
            "a loader with base_dataloader, as Accelerate makes for processors and GPUs",
            "another kind of device, or another version of Accelerate",
            "use a plain DataLoader with this accelerator",
        )
    if isinstance(base, RemoteDataLoader):
        return prepared
    dispatched = type(prepared).__name__ == "DataLoaderDispatcher" and prepared.state.num_processes > 1
    if prepared.use_stateful_dataloader and dispatched:
        raise InputError(
            "a loader that one rank reads for all, with use_stateful_dataloader=True",
            "a loader that each rank reads for itself: Accelerate counts batches back in the state of the others",
            "dispatch_batches=True, which is the default for streams",
            "DataLoaderConfiguration(dispatch_batches=False, use_stateful_dataloader=True)",
        )
    options = {name: getattr(base, name) for name in OPTIONS if name not in OWN} | own
    if isinstance(base.dataset, IterableDataset):
        options |= {"batch_size": base.batch_size, "drop_last": base.drop_last}
    elif base.batch_sampler is None:
        options |= {"batch_size": None, "sampler": base.sampler}
    else:
        options["batch_sampler"] = base.batch_sampler
    prepared.base_dataloader = RemoteDataLoader(base.dataset, **options)
    prepared.dl_state_dict = prepared.base_dataloader.state_dict()
    return prepared
