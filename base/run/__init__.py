"""Folder of one training run, into which every part writes its records.

Format, schema version 1.  A run is a folder, local or at any fsspec URL (``s3://...``):

``run.json``
    One JSON object: ``schema``, ``state`` (``running``, ``finished``, ``failed``), ``start`` and
    ``end`` (seconds since the epoch; ``end`` is null while running), ``host``, ``world``,
    ``versions``, and ``process``, what identifies the process that runs (absent where /proc is).  Only rank 0 writes the file, and each time it replaces the whole file atomically.
``<part>/<name>.rank<r>.<n>.jsonl``
    JSON lines: UTF-8, one object on each line, without spaces between tokens.  Numbers that JSON lacks
    are the strings ``NaN``, ``Infinity`` and ``-Infinity``.  A record counts once its newline is written.
    A process that is killed while it writes may leave a last line without a newline: readers drop and
    count this line.  They also drop and count lines that are damaged or of another form.  ``n`` counts
    the files of one rank from 0.  A resumed run starts a new file, so no process changes a file of another
    one.  Files on remote storage cannot grow: each flush is a file.
    If the folder is deleted while a process writes, it is made again, with the records from then on.
"""

from loopwise.storage.files import is_local as is_local
from loopwise.storage.files import listed as listed
from loopwise.storage.files import read_file as read_file
from loopwise.storage.files import write_file as write_file
from loopwise.storage.json_lines import decode as decode
from loopwise.storage.json_lines import encode as encode

from .folder import SCHEMA as SCHEMA
from .folder import Run as Run
from .folder import location as location
from .folder import read as read
from .handles import RunHandle as RunHandle
from .handles import as_run as as_run
from .handles import can_resume as can_resume
from .record_files import Lines as Lines
from .record_files import is_file_at as is_file_at
