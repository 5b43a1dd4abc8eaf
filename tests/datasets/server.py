"""A web server of made-up sections, in the layout in which 10x Genomics publishes Visium sections."""

from __future__ import annotations

import runpy
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from hadmst_sc.datasets import download
from hadmst_sc.phantom.simulate import Phantom

FOLDERS = runpy.run_path(str(Path(__file__).parents[1] / "platforms" / "folders.py"))


def publish(folder: Path, phantom: Phantom) -> dict[str, download.Sample]:
    """Write a Space Ranger folder of the phantom in place of each public section; the sections with their sha256."""
    FOLDERS["visium"](folder / "outs", phantom, version=1)
    with tarfile.open(folder / "spatial.tar.gz", "w:gz") as archive:
        archive.add(folder / "outs" / "spatial", "spatial")
    written = {
        download.COUNTS: folder / "outs" / "filtered_feature_bc_matrix.h5",
        download.SPATIAL: folder / "spatial.tar.gz",
        download.IMAGE: folder / "outs" / "he.tif",
    }
    digests = {kind: sha256(path.read_bytes()).hexdigest() for kind, path in written.items()}
    for sample in download.SAMPLES.values():
        (folder / sample.id).mkdir()
        for kind, path in written.items():
            shutil.copy(path, folder / sample.id / sample.file(kind))
    return {name: sample._replace(sha256=digests) for name, sample in download.SAMPLES.items()}


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Address of a server of the folder, and the requests that it got: path and user agent."""
    requests: list[tuple[str, str]] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            requests.append((self.path, self.headers["User-Agent"]))

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
