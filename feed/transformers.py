"""Batches of Hugging Face's ``Trainer`` loaded by ``RemoteDataLoader``, by a mixin.

class FeedingTrainer(FeedingTrainerMixin, Trainer):
    pass

FeedingTrainer(model, args, train_dataset=dataset, feed={"group": "data"}).train()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loopwise.errors import InputError
from loopwise.extras import required

from .accelerate import OWN, load_by_workers, skip_first_batches

with required("transformers", "transformers", "FeedingTrainerMixin"):
    from transformers import trainer as trainer_module

_MODULE: Any = trainer_module
"""The module whose ``skip_first_batches`` the Trainer calls."""


class FeedingTrainerMixin:
    """Mixin that stands before ``Trainer`` in the bases of a class.

    The loaders of training, evaluation and prediction are those of the Trainer, with a ``RemoteDataLoader`` inside; batches,
    shards of ranks and resumption are as without the mixin.  ``TrainingArguments`` has the number of workers and the
    other arguments that ``DataLoader`` has, such as ``dataloader_num_workers``.

    Args:
        feed: arguments of ``RemoteDataLoader`` that ``DataLoader`` does not have: ``group``, ``prefetch_bytes``, ``workers``,
            ``seeding``, ``on_crash``; ``True``: their defaults; ``False`` or ``None``: load as the Trainer does.

    Raises:
        InputError: invalid options.
    """

    def __init__(self, *args: Any, feed: bool | Mapping[str, Any] | None = True, **kwargs: Any) -> None:
        self._feed_options = _validated(feed)
        super().__init__(*args, **kwargs)
        workers = self.args.dataloader_num_workers  # type: ignore[attr-defined]
        if self._feed_options is not None and not workers:
            raise InputError(
                f"feed={feed!r} with dataloader_num_workers=0",
                "dataloader_num_workers of at least 1",
                "dataloader_num_workers was left out; batches are then loaded in the training process",
                "pass TrainingArguments(dataloader_num_workers=8), for instance",
            )

    def get_train_dataloader(self) -> Any:
        return self._feed(super().get_train_dataloader())  # type: ignore[misc]

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        return self._feed(super().get_eval_dataloader(*args, **kwargs))  # type: ignore[misc]

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        return self._feed(super().get_test_dataloader(*args, **kwargs))  # type: ignore[misc]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        before = _MODULE.skip_first_batches
        _MODULE.skip_first_batches = skip_first_batches  # on resumption, the Trainer makes a loader anew
        try:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        finally:
            _MODULE.skip_first_batches = before

    def _feed(self, loader: Any) -> Any:
        return loader if self._feed_options is None else load_by_workers(loader, self._feed_options)


def _validated(feed: bool | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the options of the mixin, ``None`` if nothing is to be done."""
    if feed is None or feed is False:
        return None
    given = dict(feed) if isinstance(feed, Mapping) else {}
    unknown = sorted(given.keys() - set(OWN))
    if unknown or not isinstance(feed, (bool, Mapping)):
        raise InputError(
            f"feed={feed!r}",
            f"False, True, or a dict of options among {', '.join(OWN)}",
            "an option that is misspelt, or that DataLoader has, too",
            "pass what DataLoader has in TrainingArguments, such as dataloader_num_workers",
        )
    return given
