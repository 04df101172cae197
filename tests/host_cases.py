"""Several processes over the loopback that share eight CPU devices, as hosts share those of a mesh."""

import os
import socket
import subprocess
import sys


def environments(count):
    """The environment of each of `count` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("count=8", f"count={8 // count}")
    names = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "XLA_FLAGS": flags}
    return [{**names, "JAX_PROCESS_ID": str(index)} for index in range(count)]


def workers(count, *arguments):
    """`python ARGUMENTS` as each of `count` processes."""
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments(count)
    ]


def ended(processes):
    """Exit codes, and what each wrote to its two streams."""
    said = [process.communicate(timeout=300) for process in processes]
    return [process.returncode for process in processes], [out for out, _ in said], [err for _, err in said]
