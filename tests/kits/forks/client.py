"""Ask a server for a copy of itself, and end as the copy does: ``client.py FOLDER ARGUMENTS...``."""

import json
import os
import signal
import socket
import sys
import time

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def connected(path):
    """Connect to the server, which may only just have been started."""
    connection = socket.socket(socket.AF_UNIX)
    while True:
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.01)
        else:
            return connection


def main(folder, *arguments):
    number = int(os.environ.get("RANK", "0")) % 2
    connection = connected(f"{folder}/{number}")
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    request["client"] = os.getpid()
    request["ignored"] = [int(number) for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN]
    data = json.dumps(request).encode()
    socket.send_fds(connection, [len(data).to_bytes(4, "little")], [0, 1, 2])
    connection.sendall(data)
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: connection.send(bytes([number])))
    answer = connection.recv(4)
    status = int.from_bytes(answer, "little", signed=True) if answer else -signal.SIGKILL
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
