"""A bucket of Google Cloud Storage on this machine, for the real clients of Orbax and TensorStore."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # read when gcsfs is imported


def _tell_generations() -> None:
    """Has the emulator say with each content which generation of the object it is, as the real service does."""
    from gcp_storage_emulator.server import Response
    from gcp_storage_emulator.storage import Storage

    if hasattr(Response, "tells_generations"):
        return
    looked_up, find, write = threading.local(), Storage.get_file_obj, Response.write_file

    def get_file_obj(self, *arguments):
        looked_up.object = find(self, *arguments)
        return looked_up.object

    def write_file(self, *arguments, **keywords):
        self["x-goog-generation"] = looked_up.object["generation"]
        return write(self, *arguments, **keywords)

    Storage.get_file_obj, Response.write_file, Response.tells_generations = get_file_obj, write_file, True


@contextmanager
def local_bucket() -> Iterator[dict[str, str]]:
    """Serves `gs://bucket`; the variables with which a process, this one or another, finds it."""
    from gcp_storage_emulator.server import create_server

    _tell_generations()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    address = f"http://127.0.0.1:{port}"
    variables = {
        "STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "NO_GCE_CHECK": "true",
        # Else the client looks for credentials and for the kind of bucket at addresses that never answer.
        "FSSPEC_GS_TOKEN": "anon", "FSSPEC_GCS_TOKEN": "anon", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }  # fmt: skip
    try:
        yield variables
    finally:
        server.stop()
