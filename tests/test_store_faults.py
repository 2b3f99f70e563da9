"""A store is whole or refused, wherever the disk is full, an input or output fails, or the plug is pulled; and the next
run completes it to the same bytes. Every call that changes a file is made to fail once; with PEACE_LONG set, both ways."""
import builtins
import errno
import io
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from peace_nb.settings import PeaceError
from peace_nb.signals.prepare import LEADS, SignalSpec
from peace_nb.store.build import build_store
from peace_nb.store.store import SignalStore
from peace_nb.store.writer import FILES

pytestmark = pytest.mark.usefixtures("no_waiting")
SPEC = SignalSpec(fs=50, seconds=5, band=None)


class Tiny:
    "Seven records in two chunks, one of them unreadable."
    name, fingerprint, coverage = "tiny", "0", None

    def __init__(self):
        ids = pd.Index([f"r{i}" for i in range(7)], name="record_id")
        self.table = pd.DataFrame({"patient_id": [f"p{i // 2}" for i in range(7)], "quality": ""}, index=ids)
        self.labels = pd.DataFrame(0., index=ids, columns=["NORM", "RBBB"])

    def part(self, ids): return SimpleNamespace(table=self.table.loc[ids], labels=self.labels.loc[ids], raw=self.raw)

    def raw(self, record):
        if record == "r4": raise PeaceError("r4 is damaged")
        i = int(record[1:])
        return np.sin(np.arange(250) / (5 + i) + np.arange(12)[:, None]), list(LEADS), 50.


def build(path: Path): return build_store(Tiny(), SPEC, path, progress=False, chunk=4)
def content(path: Path) -> dict: return {f: (path / f).read_bytes() for f in FILES}


GROWS = ("open", "write", "flush", "mkdir", "to_parquet", "write_table")   # what a full disk stops; else it is an I/O error


class Plug(BaseException):
    "The machine is off: nothing that would tidy up afterwards gets to run."


class Disk:
    "Counts the calls that change a file below a folder, and lets call number `at` fail."
    def __init__(self, folder: Path, how: str, at: int = -1):
        self.folder, self.how, self.at, self.calls, self.off = str(folder), how, at, [], False

    def fails(self, what: str, name) -> bool:
        if self.off: raise Plug
        self.calls.append(f"{what} {name}")
        return len(self.calls) - 1 == self.at

    def fault(self, name):
        if self.how == "plug":
            self.off = True
            raise Plug
        number = errno.ENOSPC if self.calls[-1].split()[0] in GROWS else errno.EIO
        raise OSError(number, os.strerror(number), str(name))

    def call(self, what: str, function, part=None):
        "`function` with a fault before it, or after half of its work where `part` does half of it."
        def wrapped(name, *args, **kwargs):
            mine = isinstance(name, (str, os.PathLike)) and (self.folder in os.fspath(name) or "dir_fd" in kwargs)
            if mine and self.fails(what, name):
                if part: part(name, *args, **kwargs)
                self.fault(name)
            return function(name, *args, **kwargs)
        return wrapped

    def open(self, function):
        def wrapped(name, mode="r", *args, **kwargs):
            ours = isinstance(name, (str, os.PathLike)) and self.folder in os.fspath(name)
            if not ours or not set(mode) & set("wax+"): return function(name, mode, *args, **kwargs)
            if self.fails(f"open {mode}", name): self.fault(name)
            return Handle(self, function(name, mode, *args, **kwargs))
        return wrapped

    def install(self, patch):
        patch.setattr(builtins, "open", self.open(builtins.open))
        patch.setattr(io, "open", builtins.open)
        for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "remove"):
            patch.setattr(os, name, self.call(name, getattr(os, name)))

        def fsync(number):
            if self.fails("fsync", number): self.fault(number)
        patch.setattr(os, "fsync", fsync)
        to_parquet, write_table = pd.DataFrame.to_parquet, pq.ParquetWriter.write_table

        def half_a_frame(frame, path, *args, **kwargs):
            if self.fails("to_parquet", path):
                Path(path).write_bytes(b"PAR1 and no more") if self.how != "plug" else None
                self.fault(path)
            return to_parquet(frame, path, *args, **kwargs)

        def half_a_table(writer, *args, **kwargs):
            if self.fails("write_table", "joined"): self.fault("joined")
            return write_table(writer, *args, **kwargs)
        patch.setattr(pd.DataFrame, "to_parquet", half_a_frame)
        patch.setattr(pq.ParquetWriter, "write_table", half_a_table)


class Handle:
    "An open file whose writes may come to half."
    def __init__(self, disk: Disk, file): self.__dict__.update(disk=disk, file=file)
    def __getattr__(self, name): return getattr(self.file, name)
    def __enter__(self): return self
    def __exit__(self, *args): self.file.close()
    def __iter__(self): return iter(self.file)

    def _may_fail(self, what: str):
        if self.disk.fails(what, self.file.name): self.disk.fault(self.file.name)

    def write(self, data):
        if self.disk.fails("write", self.file.name):
            self.file.write(data[:len(data) // 2])      # what a full disk took, or what was on its way
            self.file.flush()
            self.disk.fault(self.file.name)
        return self.file.write(data)

    def truncate(self, *args):
        self._may_fail("truncate")
        return self.file.truncate(*args)

    def flush(self):
        self._may_fail("flush")
        return self.file.flush()


@pytest.fixture
def no_waiting(monkeypatch): monkeypatch.setattr(os, "fsync", lambda number: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "s"
    build(path)
    return path


def calls_of(path: Path) -> list:
    "Every call that changes a file while a store is built."
    disk = Disk(path.parent, "error")
    with pytest.MonkeyPatch.context() as patch:
        disk.install(patch)
        build(path)
    return disk.calls


def last_table(calls: list) -> int: return max(i for i, c in enumerate(calls) if c.startswith("write_table"))


def whole_or_refused(path: Path, whole: Path):
    "What lies at `path` is the store, or it is refused in one sentence."
    try: store = SignalStore.open(path, SPEC)
    except PeaceError as e:
        assert "\n" not in str(e) and str(path) in str(e)
        return
    assert store.verify() and content(path) == content(whole)


@pytest.mark.parametrize("how", ["error", "plug"])
def test_a_fault_at_any_call(tmp_path, whole, how):
    calls = calls_of(tmp_path / "count" / "s")
    assert len(calls) > 40 and {c.split()[0] for c in calls} >= {"open", "write", "replace", "fsync", "to_parquet", "rmdir"}
    assert content(tmp_path / "count" / "s") == content(whole)
    every = 1 if os.environ.get("PEACE_LONG") else 2        # in CI every call fails once, one way or the other
    for at, call in list(enumerate(calls))[("error", "plug").index(how) % every::every]:
        path = tmp_path / str(at) / "s"
        disk = Disk(path.parent, how, at)
        with pytest.MonkeyPatch.context() as patch:
            disk.install(patch)
            try: build(path)
            except (OSError, PeaceError, Plug): pass
        whole_or_refused(path, whole)
        build(path)
        assert content(path) == content(whole), f"after {how} at call {at}: {call}"
        left = {p.name for p in path.parent.iterdir() if not p.name.startswith(".s.lock")}
        assert left == {"s"}, f"after {how} at call {at}: {call}"


@pytest.mark.parametrize("file", ["parts/0000000.json", "parts/0000001.table", "parts/0000001.labels", "signals.npy",
                                  "plan.json"])
@pytest.mark.parametrize("left", [0, 7, 0.5])
def test_a_file_that_never_reached_the_disk(tmp_path, whole, file, left):
    "After a power failure a renamed file may be empty or short, where it was not waited for."
    path = tmp_path / "s"
    at = last_table(calls_of(tmp_path / "count" / "s"))
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(tmp_path, "plug", at)
        disk.install(patch)
        with pytest.raises(Plug): build(path)
    short = path.with_name("s.partial") / file
    data = short.read_bytes()
    short.write_bytes(data[:int(len(data) * left) if left < 1 else left])
    build(path)
    assert content(path) == content(whole)


def test_samples_that_never_reached_the_disk(tmp_path, whole):
    "The array has its length, but the last chunk is zeros."
    path = tmp_path / "s"
    at = last_table(calls_of(tmp_path / "count" / "s"))
    with pytest.MonkeyPatch.context() as patch:
        Disk(tmp_path, "plug", at).install(patch)
        with pytest.raises(Plug): build(path)
    file = path.with_name("s.partial") / "signals.npy"
    data = bytearray(file.read_bytes())
    data[-12 * 250:] = bytes(12 * 250)
    file.write_bytes(bytes(data))
    build(path)
    assert content(path) == content(whole)
