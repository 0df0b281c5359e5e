"""Folder of one training run, into which every part writes its records.

Format, schema version 1.  A run is a folder, local or at any fsspec URL (``s3://...``):

``run.json``
    One JSON object: ``schema``, ``state`` (``running``, ``finished``, ``failed``), ``start`` and
    ``end`` (seconds since the epoch; ``end`` is null while running), ``host``, ``world`` and
    ``versions``.  Only rank 0 writes the file, and each time it replaces the whole file atomically.
``<part>/<name>.rank<r>.<n>.jsonl``
    JSON lines: UTF-8, one object on each line, without spaces between tokens.  Numbers that JSON lacks
    are the strings ``NaN``, ``Infinity`` and ``-Infinity``.  A record counts once its newline is written.
    A process that is killed while it writes may leave a last line without a newline: readers drop and
    count this line.  ``n`` counts the files of one rank from 0.  A resumed run starts a new file, so no
    process changes a file of another one.  Files on remote storage cannot grow: each flush is a file.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import socket
import sys
import time
import weakref
from typing import Any, ClassVar

import fsspec
import torch

from loopwise import __version__
from loopwise.errors import InputError, StateError
from loopwise.ranks import is_main, rank, world_size
from loopwise.torch_internals import call_before_executors_end

SCHEMA = 1


def _plain(value: Any) -> Any:
    """Return ``value`` with non-finite floats as strings, and tensors and NumPy scalars as numbers."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def encode(record: dict[str, Any]) -> bytes:
    """Return the line of a record, newline included."""
    return json.dumps(_plain(record), separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return the committed records in a file's bytes, and the number of torn ones that were dropped (0 or 1)."""
    *lines, tail = data.split(b"\n")
    return [json.loads(line) for line in lines], int(bool(tail))


def listed(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """Return the paths of the files that a folder holds now.

    A missing folder has no files: object storage has no empty folders.
    """
    fs.invalidate_cache(folder)
    try:
        return list(fs.ls(folder, detail=False))
    except FileNotFoundError:
        return []


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Return whether a file system is that of this machine."""
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


class Lines:
    """File of JSON lines, open for appending.

    On a local disk, each call of ``append`` is one unbuffered write.  On remote storage, each flush writes a new file.
    """

    def __init__(self, run: Run, part: str, name: str) -> None:
        folder = f"{run.path}/{part}"
        run.fs.makedirs(folder, exist_ok=True)
        self._fs, self._stem = run.fs, f"{folder}/{name}.rank{rank()}"
        numbers = [int(m[2]) for f in listed(run.fs, folder) if (m := _match(f, name, rank()))]
        self._number = max(numbers, default=-1) + 1
        self._pending: list[bytes] = []
        self._file: int | None = None
        if run.local:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._file = os.open(f"{self._stem}.{self._number}.jsonl", flags, 0o644)

    def append(self, *records: dict[str, Any]) -> None:
        """Commit records by one write on a local disk, or queue them for the next ``flush`` to remote storage."""
        line = b"".join(map(encode, records))
        if self._file is None:
            self._pending.append(line)
            return
        size = os.fstat(self._file).st_size
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError:
            os.ftruncate(self._file, size)  # the next record must not be joined to a torn one
            raise

    def flush(self) -> None:
        """Commit the queued records to remote storage; local records are committed already."""
        if self._pending:
            self._fs.pipe_file(f"{self._stem}.{self._number}.jsonl", b"".join(self._pending))
            self._pending, self._number = [], self._number + 1

    def close(self) -> None:
        """Commit the queued records and close the file."""
        self.flush()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _match(path: str, name: str, of_rank: int | None = None) -> re.Match[str] | None:
    """Match the path of a file of the JSON lines ``name``; the groups are the rank and the file's number."""
    number = r"\d+" if of_rank is None else str(of_rank)
    return re.fullmatch(rf"{re.escape(name)}\.rank({number})\.(\d+)\.jsonl", path.rsplit("/", 1)[-1])


class Run:
    """Folder of one training run.

    A ``with`` statement writes the end of the run and its state, ``finished`` or ``failed``, into ``run.json``.

    Args:
        path: folder or fsspec URL; made if missing.
        resume: continue in a folder that already holds a run; otherwise such a folder is an error.

    Attributes:
        fs: file system of the folder.
        path: path of the folder on that file system.
        local: whether the folder is on a local disk.

    Raises:
        StateError: the folder already holds a run.
    """

    def __init__(self, path: str | os.PathLike[str], resume: bool = False) -> None:
        self._locate(path)
        if not is_main():
            return
        if self.exists() and not resume:
            raise StateError(
                f"the folder {self.path!r} already holds a run",
                "a new or empty folder, or resume=True",
                "an earlier run wrote there",
                "name another folder, delete this one, or pass resume=True to go on in it",
            )
        self.fs.makedirs(self.path, exist_ok=True)
        self._start = self.info()["start"] if self.exists() else time.time()
        self._write("running", None)

    @classmethod
    def existing(cls, path: str | os.PathLike[str]) -> Run:
        """Return the run in a folder or at a URL, opened for reading only.

        Raises:
            InputError: the folder holds no run, or a run of a newer schema.
        """
        run = cls.__new__(cls)
        run._locate(path)
        if (schema := run.info()["schema"]) > SCHEMA:
            raise InputError(
                f"{run.path!r} of schema {schema}",
                f"at most {SCHEMA}",
                "a newer version of Loopwise wrote the run",
                "pip install -U loopwise",
            )
        return run

    def _locate(self, path: str | os.PathLike[str]) -> None:
        self.fs, self.path = _resolve(path)
        self.local = is_local(self.fs)
        self._lines: dict[tuple[str, str], Lines] = {}

    def __repr__(self) -> str:
        return f"Run({self.url!r})"

    @property
    def url(self) -> str:
        """Path of a local folder, or URL of a remote one; ``Run`` accepts both."""
        return self.path if self.local else str(self.fs.unstrip_protocol(self.path))

    def exists(self) -> bool:
        """Return whether the folder holds a run."""
        return bool(self.fs.exists(f"{self.path}/run.json"))

    def info(self) -> dict[str, Any]:
        """Return the contents of ``run.json``; the module's docstring lists the keys and their units.

        Raises:
            InputError: the file is missing or damaged.
        """
        try:
            info: dict[str, Any] = json.loads(self.fs.cat_file(f"{self.path}/run.json"))
            return info | {"schema": int(info["schema"])}
        except (OSError, KeyError, TypeError, ValueError) as error:
            missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
            raise InputError(
                f"no run.json in {self.path!r}" if missing else f"the run.json in {self.path!r}: {error!r}",
                "a folder that a run was written to",
                "a wrong path, or a run that was never started",
                "check the path",
            ) from None

    def append(self, part: str, name: str, *records: dict[str, Any]) -> None:
        """Append records to this rank's file ``<part>/<name>``; a full disk raises an ``OSError``."""
        if (part, name) not in self._lines:
            self._lines[part, name] = Lines(self, part, name)
        self._lines[part, name].append(*records)

    def flush(self) -> None:
        """Commit the queued records of all files to remote storage; raise an ``OSError`` if it is down."""
        for lines in list(self._lines.values()):  # the profiler's thread may begin a file meanwhile
            lines.flush()

    def close(self, state: str = "finished") -> None:
        """Close the files; write the time and ``state``, ``finished`` or ``failed``, into ``run.json``."""
        for lines in list(self._lines.values()):
            lines.close()
        self._lines.clear()
        if is_main():
            self._write(state, time.time())

    def _write(self, state: str, end: float | None) -> None:
        versions = {"loopwise": __version__, "torch": torch.__version__, "python": platform.python_version()}
        info = {"schema": SCHEMA, "state": state, "start": self._start, "end": end}
        info |= {"host": socket.gethostname(), "world": world_size(), "versions": versions}
        data, target = json.dumps(info, indent=1).encode(), f"{self.path}/run.json"
        if not self.local:
            self.fs.pipe_file(target, data)
            return
        with open(f"{target}.new", "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{target}.new", target)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("finished" if kind is None else "failed")


class RunHandle:
    """A part's use of a run, from ``as_run`` to ``release``.

    A handle whose ``release`` is not called is released when it is garbage-collected or the interpreter exits.

    Attributes:
        run: the run.
    """

    def __init__(self, run: Run, part: str, shared: _Shared | None) -> None:
        self.run, self._part, self._shared = run, part, shared
        if shared is not None:
            shared.parts.append(part)
            self._finalizer = weakref.finalize(self, shared.abandon, part, os.getpid())
            if not run.local:
                call_before_executors_end(self._finalizer)

    def release(self, state: str = "finished") -> None:
        """End the part's use of the run; a run that was opened by its path is closed by the last part.

        Args:
            state: ``finished``, or ``failed`` if the part ended by an error; the run failed if any part did.
        """
        if self._shared is not None and self._finalizer.detach():
            self._shared.release(self._part, state)


class _Shared:
    """A run that was opened by its path, and the parts of this process that use it."""

    opened: ClassVar[list[_Shared]] = []

    def __init__(self, run: Run) -> None:
        self.run, self.parts, self._state = run, list[str](), "finished"
        self.opened.append(self)

    def release(self, part: str, state: str) -> None:
        """Remove one use by ``part``, and close the run after the last one."""
        self.parts.remove(part)
        self._state = state if state != "finished" else self._state
        if not self.parts:
            self.opened.remove(self)
            self.run.close(self._state)

    def abandon(self, part: str, process: int) -> None:
        """Release a handle that was never released, unless this is a forked copy of the process."""
        if os.getpid() == process:
            # Python sets last_value before it runs the exit handlers, and an interactive session goes on after it
            crashed = getattr(sys, "last_value", None) is not None and not hasattr(sys, "ps1")
            self.release(part, "failed" if crashed else "finished")


def location(run: str | os.PathLike[str] | Run) -> str:
    """Return the path or URL of the run that a public ``run`` argument names.

    Raises:
        InputError: ``run`` is of another type.
    """
    if isinstance(run, Run):
        return run.url
    if not isinstance(run, (str, os.PathLike)):
        raise InputError(
            f"run= of type {type(run).__name__}",
            "a folder, an fsspec URL such as s3://bucket/run, or a Run",
            "arguments that changed places",
            "pass run='runs/example'",
        )
    return os.fspath(run)


def _resolve(run: str | os.PathLike[str] | Run) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, path = fsspec.core.url_to_fs(location(run))
    return fs, os.path.normpath(path) if is_local(fs) else path


def as_run(run: str | os.PathLike[str] | Run | None, part: str, resume: bool = False) -> RunHandle | None:
    """Open the run that a public ``run=`` argument names, for writing.

    Parts of one process that name the same folder share one ``Run``: the first part opens it, with its
    ``resume``, and the others join.  A ``Run`` that the caller made stays open: only the caller closes it.

    Args:
        run: a folder or fsspec URL, a ``Run``, or ``None``.
        part: name of the part that uses the run.
        resume: continue in a folder that already holds a run; only valid for a path.

    Returns:
        The part's handle, to be released when the part ends; ``None`` if ``run`` is ``None``.

    Raises:
        InputError: ``run`` is of another type, or ``resume`` was passed together with a ``Run``.
        StateError: the folder already holds a run, or the part already writes into it.
    """
    if run is None:
        return None
    if isinstance(run, Run):
        if resume:
            raise InputError(
                "resume=True together with a Run",
                "resume=True only if run= is a path",
                "the Run is open already",
                "pass resume=True to Run(...) instead",
            )
        return RunHandle(run, part, None)
    fs, path = _resolve(run)
    shared = next((s for s in _Shared.opened if s.run.path == path and s.run.fs == fs), None)
    if shared is None:
        shared = _Shared(Run(location(run), resume))
    elif part in shared.parts and not resume:
        raise StateError(
            f"the folder {path!r} already holds a run, which the part {part!r} of this process writes into",
            "a folder that the part does not use yet, resume=True, or a Run",
            "the same path was passed twice, or the earlier object was not closed",
            "name another folder, call close() of the earlier object, or pass one Run(...) to both",
        )
    return RunHandle(shared.run, part, shared)


def read(path: str | os.PathLike[str], part: str, name: str) -> tuple[list[dict[str, Any]], int]:
    """Return the committed records of all ranks, by rank and number of the file, and the number of torn ones.

    ``name`` is the name of records of ``part``, such as ``epochs`` of ``sift``; a folder without records is no error.

    Raises:
        json.JSONDecodeError: a line that ends with a newline is damaged.
    """
    fs, folder = fsspec.core.url_to_fs(f"{os.fspath(path)}/{part}")
    matches = [(match, file) for file in listed(fs, folder) if (match := _match(file, name))]
    files = sorted((int(match[1]), int(match[2]), file) for match, file in matches)
    decoded = [decode(fs.cat_file(file)) for _, _, file in files]
    return [record for records, _ in decoded for record in records], sum(torn for _, torn in decoded)
