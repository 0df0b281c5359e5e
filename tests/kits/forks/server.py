"""Import torch, and turn into a copy for each process that is wanted: ``server.py SOCKET``.

A copy has a keeper, which passes on signals and the status, and ends the copy if the client has been killed.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import threading
import types
import warnings
from pathlib import Path

IMPORTED = ("numpy", "torch", "torch.distributed", "torch._dynamo", "torch._inductor.compile_fx")
"""What a training process imports before it trains; each optimizer imports Dynamo."""


def reap(options):
    """Wait for keepers that have ended, so that their seconds count."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, options)[0]:
            pass


def wanted(path):
    """Serve until the tests end; return the connection of a client in the copy of this process that is for it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            reap(0)
            os._exit(0)
        connection, _ = listener.accept()
        for name in IMPORTED:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()
        reap(os.WNOHANG)
        if os.fork() == 0:
            listener.close()
            return connection
        connection.close()


def received(connection):
    """Return the request of a client and its streams."""
    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    data = b""
    while len(data) < int.from_bytes(head, "little"):
        data += connection.recv(1 << 16)
    return json.loads(data), streams


def keep(connection, copy):
    """Pass signals to the copy and its status to the client; end here."""
    ended = os.pidfd_open(copy)
    while True:
        ready, _, _ = select.select([connection, ended], [], [])
        if ended in ready:
            status = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
            with contextlib.suppress(OSError):
                connection.send(status.to_bytes(4, "little", signed=True))
            os._exit(0)
        try:
            numbers = connection.recv(16)
        except OSError:
            numbers = b""
        for number in numbers or [signal.SIGKILL]:
            os.kill(copy, number)
        if not numbers:
            os.waitpid(copy, 0)
            os._exit(0)


def become(request, streams, folder):
    """Give this process the environment, the folder, the streams and the random numbers of a new one."""
    Path(folder, str(request["client"])).write_text(str(os.getpid()))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    tempfile.tempdir = None
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [path for path in added if path not in sys.path]
    sys.orig_argv = [sys.executable, *request["arguments"]]
    torch, numpy = sys.modules["torch"], sys.modules["numpy"]
    torch.default_generator.seed()
    numpy.random.seed()
    warnings._processoptions([option for option in os.environ.get("PYTHONWARNINGS", "").split(",") if option])
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))


def end(status):
    """End as an interpreter does, without taking its modules apart, which takes seconds."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(status)


def finish(arguments):
    """Run what the arguments name, and end with its status."""
    try:
        run(arguments)
        status = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        found = type(error), error, error.__traceback__.tb_next.tb_next
        sys.last_type, sys.last_value, sys.last_traceback = found
        sys.excepthook(*found)
        status = 1
    end(status & 0xFF)


def run(arguments):
    """Run what the arguments name, as an interpreter does."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    while arguments[0] in ("-u", "-W"):
        if arguments[0] == "-u":
            sys.stdout.reconfigure(write_through=True)
        else:
            warnings._processoptions([arguments.pop(1)])
        arguments = arguments[1:]
    kind, *rest = arguments
    if kind == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = ["-m", *rest[1:]]
        runpy._run_module_as_main(rest[0])
    elif kind == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        assert not kind.startswith("-"), f"{kind} is not understood"
        sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))
        sys.argv = arguments
        main.__file__ = kind
        with open(kind, "rb") as file:
            exec(compile(file.read(), kind, "exec"), main.__dict__)


sys.path.append(os.path.dirname(sys.path.pop(0)))  # the kits instead of this folder
connection = wanted(sys.argv[1])
request, streams = received(connection)
if copy := os.fork():
    keep(connection, copy)
connection.close()
become(request, streams, os.path.dirname(sys.argv[1]))
finish(request["arguments"])
