"""Run ``torchrun`` with the exit status of the script: its own is 1 for every failure.

Called with the arguments of ``torchrun``.
"""

from __future__ import annotations

import signal
import sys

from loopwise.programs.processes import exit_status


def prefix(host: str) -> dict[str, str]:
    """Return the variable by which ``torchrun`` puts the host and the local rank in front of each line."""
    return {"TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": f"[{host}:${{local_rank}}] "}


def arguments(
    node: int, nodes: int, processes: int, address: str, first: str, port: int, script: list[str]
) -> list[str]:
    """Return the arguments of ``torchrun`` on one host.

    Args:
        node: number of the host in the group.
        nodes: number of hosts.
        processes: processes on each host.
        address: address of the host.
        first: address of the group's first host.
        port: port on the first host by which the processes find each other.
        script: the script and its arguments.
    """
    return [
        f"--nnodes={nodes}",
        f"--node-rank={node}",
        f"--nproc-per-node={processes}",
        f"--master-addr={first}",
        f"--master-port={port}",
        f"--local-addr={address}",
        "--tee=3",
        *script,
    ]


def run(given: list[str]) -> int:
    """Run ``torchrun`` and return the script's exit status: that of the first process that failed."""
    # Imported here: the launcher needs the arguments only, and starts without torch in a tenth of the time.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main(given)
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        return exit_status(error.get_first_failure()[1].exitcode) or 1
    except SignalException as error:
        return exit_status(-error.sigval)
    except KeyboardInterrupt:
        return exit_status(-signal.SIGINT)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
