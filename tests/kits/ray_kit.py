"""A Ray cluster of three nodes on this machine, in a process of its own: ``python ray_kit.py``."""

import contextlib
import os
import subprocess
import sys

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # programs would wait for all other tests
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "2",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}
MEMORY = 80_000_000


@contextlib.contextmanager
def three_nodes():
    """Yield the address of a cluster, and a function that removes a node by its name as if its machine had failed.

    The function kills the head's control plane, too, if it is given ``head``; the nodes end a few seconds later.

    The head has no CPUs for trials; the other nodes have two, and a pretended GPU.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, __file__], env=os.environ | SETTINGS, **pipes)

    def ask(text=""):
        if text:
            process.stdin.write(text + "\n")
            process.stdin.flush()
        while not (line := process.stdout.readline()).startswith("answer "):
            assert line, "the cluster has ended"
        return line.split()[1]

    try:
        yield ask(), ask
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait(120)
        process.stdout.close()


def serve():
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    resources = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": MEMORY}
    nodes = [cluster.add_node(wait=False, **resources) for _ in range(2)]
    cluster.wait_for_nodes()
    print("answer", cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "head":
            cluster.head_node.kill_gcs_server()
            print("answer killed", flush=True)
            continue
        (removed,) = (node for node in nodes if node.node_id == line.strip())
        cluster.remove_node(removed, allow_graceful=False)
        print("answer removed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    serve()
