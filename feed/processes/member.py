"""One worker process, as the training process sees it."""

from __future__ import annotations

import pickle
import signal
from multiprocessing.context import get_spawning_popen, set_spawning_popen
from multiprocessing.reduction import ForkingPickler
from typing import Any, cast

from loopwise.errors import InputError

from ..lanes import result
from ..protocol import Counters, Lost, Result, Task, Work
from ..ring.batch import Batch
from ..ring.file import CLOSED, NUMBER, POSITION, SharedFile
from ..ring.views import Views
from ..unpicklable import culprit
from .channel import pair
from .main import main


class Member:
    """A worker process with its connection and its shared memory.

    Args:
        context: the context of ``multiprocessing`` that starts the process.
        work: what the worker needs.
        several: whether the worker gets tasks of several lanes.
        batches: number of batches for which the worker keeps free memory.
        counters: counts of the pool.
    """

    def __init__(self, context: Any, work: Work, several: bool, batches: int, counters: Counters) -> None:
        self._counters = counters
        self._file = SharedFile()
        self._control = self._file.control()
        self._control[NUMBER] = -1
        self.views = Views(self._file)
        self.channel, link = pair()
        self.polled_for_sending = False
        forked = context.get_start_method() == "fork"
        arguments = (work, self._file, link, forked, several, batches)
        self.process = context.Process(target=main, args=arguments, daemon=True)
        try:
            self.process.start()
        except Exception as error:
            self.channel.close()
            self._file.close()
            unpicklable = None if forked else _unpicklable(context.get_start_method(), work)
            raise (unpicklable or error) from (None if unpicklable else error.__cause__)
        finally:
            link.close()

    def submit(self, task: Task) -> None:
        """Send a task, and the extents that were released since the last one."""
        self.channel.send(pickle.dumps((task, self.views.take_released()), protocol=5))

    def receive(self) -> list[Result]:
        """Return the results that have arrived."""
        return [self._result(message) for message in self.channel.receive()]

    def lost(self, lanes: list[int]) -> Lost:
        """Return the description of this worker's end, after it has ended, and release what it used."""
        self.process.join(5)
        if self.process.exitcode is None:  # the connection was closed, but the process lives
            self.process.kill()
            self.process.join()
        number, position = int(self._control[NUMBER]), int(self._control[POSITION])
        self.release()
        return Lost(
            lanes,
            ending(self.process.exitcode),
            None if number < 0 else number,
            None if position < 0 else position,
        )

    def stop(self) -> None:
        """Tell the worker to stop after the sample in work."""
        self._control[CLOSED] = 1
        self.channel.close()

    def release(self) -> None:
        """Close descriptors; batches that the user holds stay valid."""
        self.channel.close()
        self.views.close()
        self._file.close()

    def _result(self, message: bytes) -> Result:
        fields, body, retired = pickle.loads(message)
        self.views.forget(retired)
        if body is None:
            return result(fields, None, 0)
        *_, pickled, nbytes = body
        self._counters.batches += 1
        self._counters.pickled += pickled
        return result(fields, Batch(self.views, self._counters, body), nbytes)


def ending(exitcode: int | None) -> str:
    """Return the end of a process as the end of a sentence about it."""
    if exitcode is not None and exitcode < 0:
        try:
            return f"was ended by {signal.Signals(-exitcode).name}"
        except ValueError:
            return f"was ended by signal {-exitcode}"
    return f"ended with exit status {exitcode}"


class _Probe:
    """The process that is being started, for objects that may be pickled for it only."""

    def duplicate_for_child(self, descriptor: int) -> int:
        return descriptor


def _dumps(value: Any) -> None:
    """Pickle a value as for a process that is being started."""
    before, probe = get_spawning_popen(), cast(Any, _Probe())
    set_spawning_popen(probe)
    try:
        ForkingPickler.dumps(value)
    finally:
        set_spawning_popen(before)


def _unpicklable(method: str, work: Work) -> InputError | None:
    """Return the error that names what cannot be pickled, ``None`` if everything can."""
    for name in ("dataset", "collate_fn", "worker_init_fn"):
        value = getattr(work, name)
        try:
            _dumps(value)
        except Exception as error:
            attribute, part = culprit(name, value, _dumps)
            return InputError(
                f"{attribute} of type {type(part).__name__}, which cannot be pickled ({error})",
                f"a dataset, collate_fn and worker_init_fn that can be pickled, since {method!r} starts the workers",
                "a lambda or a function inside of a function, an open file, a lock, a connection or a generator",
                f"use a function of a module, leave {attribute} out in __getstate__ and make it in the worker when it is first "
                "used, or pass multiprocessing_context='fork'",
            )
    return None
