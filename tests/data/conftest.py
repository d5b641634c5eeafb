"""Fixtures of the tests that fetch data sets."""

import gzip
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from file_server import PACKED, Answers, Handler, hdf5_file, md5

from modelforge.data.fetching import transfer
from modelforge.data.fetching.fetch import fetch
from modelforge.data.fetching.registry import DATA_SETS, ONLY, DataSet, RemoteFile


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """A server on this machine, that retries need not wait for."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(transfer, "PAUSE", 0.001)
    answers = Answers()
    handler = type("TheHandler", (Handler,), {"answers": answers})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        answers.url = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield answers
        listening.shutdown()
        thread.join()


@pytest.fixture
def toy(server: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A registered data set in one packed HDF5 file, published on the server."""
    content = hdf5_file(tmp_path / "published.hdf5", num_structures=2_000)
    packed = gzip.compress(content, mtime=0)
    server.files[PACKED] = packed
    remote = RemoteFile("toy.hdf5", (f"https://zenodo.org{PACKED}",), md5(packed), len(packed), record=1, kept_md5=md5(content))
    folder = tmp_path / "kept"
    made = SimpleNamespace(content=content, packed=packed, remote=remote, folder=folder)

    def register(file: RemoteFile) -> None:
        data_set = DataSet("toy", "", "", "", "", "hdf5", {"full_v1": {ONLY: file}}, energy_key="energy")
        monkeypatch.setitem(DATA_SETS, "toy", data_set)

    register(remote)
    made.register = register
    made.fetch = lambda **options: fetch("toy", folder=folder, base_url=server.url, **options)[0]
    made.place = folder / "toy" / "full_v1"
    return made
