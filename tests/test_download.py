"""Downloads against a server on loopback that misbehaves, and archives that attack."""
import dataclasses
import errno
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from peace_nb import cli
from peace_nb.datasets import archives, catalogue, download
from peace_nb.datasets.catalogue import Expected
from peace_nb.datasets.download import DiskFull, Fetched, Policy, fetch_file, fetch_files
from peace_nb.settings import PeaceError

QUICK = Policy(pause=0.01, longest_pause=0.05, read_seconds=0.4, connect_seconds=2, tries=3)
def quiet(said): return None


class Handler(http.server.BaseHTTPRequestHandler):
    "Serves `server.files`; the next trick of `server.tricks[path]` says how this answer misbehaves."
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass

    def do_GET(self):
        s, path = self.server, self.path.lstrip("/")
        trick = s.tricks[path].pop(0) if s.tricks.get(path) else ""
        with s.lock:
            s.asked.append((path, self.headers.get("Range"), self.headers.get("If-Range")))
            s.now += 1
            s.most = max(s.most, s.now)
        try: self.reply(s, path, trick)
        except OSError: pass                    # the client has gone
        finally:
            with s.lock: s.now -= 1

    def reply(self, s, path, trick):
        if s.delay: time.sleep(s.delay)
        if trick.isdigit(): return self.send(int(trick), b"", {"Retry-After": "0"})
        if path not in s.files: return self.send(404, b"not here")
        data, begin = s.files[path], re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        if trick == "wrong": data = bytes(len(data))
        if trick == "page": return self.send(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        if begin and trick != "no ranges" and self.headers.get("If-Range") in (None, tag):
            b = int(begin[1])
            if b >= len(data): return self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            if trick == "other piece": b = 0
            return self.send(
                206, data[b:], {"Content-Range": f"bytes {b}-{len(data) - 1}/{len(data)}", "ETag": tag}, trick
            )
        self.send(200, data, {"ETag": tag}, trick)

    def send(self, status, data, headers={}, trick=""):
        self.send_response(status)
        for k, v in {"Content-Length": str(len(data)), **headers}.items(): self.send_header(k, v)
        self.end_headers()
        if trick.startswith("cut"):
            data = data[: int(trick[3:] or len(data) // 2)]
            self.close_connection = True
        if trick == "silent":
            self.wfile.write(data[:10])
            time.sleep(1)
            self.close_connection = True
            return
        if trick == "trickle":
            for i in range(300):
                self.wfile.write(data[i : i + 1])
                time.sleep(0.1)
            self.close_connection = True
            return
        if trick == "pace":
            for i in range(0, len(data), 1 << 16):
                self.wfile.write(data[i : i + (1 << 16)])
                time.sleep(0.05)
            return
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    s.files, s.tricks, s.asked, s.delay, s.now, s.most, s.lock = {}, {}, [], 0, 0, 0, threading.Lock()
    s.base = f"http://127.0.0.1:{s.server_port}/"
    threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()


BIG = bytes(range(256)) * 12_000   # 3 MB


def put(server, name="big.dat", data=BIG, digest=True, size=None):
    server.files[name] = data
    return Expected(name, hashlib.sha256(data).hexdigest() if digest else "", size=size, urls=(server.base + name,))


def names(folder):
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != ".download.lock"
    )


# ---------------------------------------------------------------- one file

def test_a_cut_connection_goes_on_where_it_stopped(server, tmp_path):
    e, told = put(server), []
    server.tricks["big.dat"] = ["cut1000000", "cut500000", ""]
    assert fetch_file(e, tmp_path, QUICK, count=told.append) == "fetched"
    assert [r for _, r, _ in server.asked] == [None, "bytes=1000000-", "bytes=1500000-"]
    assert server.asked[1][2] and names(tmp_path) == ["big.dat"] and (tmp_path / "big.dat").read_bytes() == BIG
    assert sum(told) == len(BIG), "no byte is counted twice"


def test_a_part_that_nothing_vouches_for_is_not_continued(server, tmp_path):
    e = put(server, digest=False)
    (tmp_path / "big.dat.part").write_bytes(b"of another time")
    assert (
        fetch_file(e, tmp_path, QUICK) == "fetched"
        and server.asked[0][1] is None
        and (tmp_path / "big.dat").read_bytes() == BIG
    )


def test_many_cuts_with_progress_are_not_given_up(server, tmp_path):
    e = put(server)
    server.tricks["big.dat"] = ["cut200000"] * 14
    assert fetch_file(e, tmp_path, dataclasses.replace(QUICK, tries=2)) == "fetched" and len(server.asked) == 15


def test_a_server_without_ranges_starts_over(server, tmp_path):
    e = put(server)
    server.tricks["big.dat"] = ["cut1000000", "no ranges"]
    assert fetch_file(e, tmp_path, QUICK) == "fetched" and (tmp_path / "big.dat").read_bytes() == BIG


def test_a_file_that_changed_between_two_pieces_is_not_mixed(server, tmp_path):
    put(server, data=BIG)
    server.tricks["big.dat"] = ["cut1000000"] + ["503"] * 5
    new = bytes(reversed(BIG))
    with pytest.raises(PeaceError):
        fetch_file(
            Expected("big.dat", hashlib.sha256(new).hexdigest(), urls=(server.base + "big.dat",)), tmp_path, QUICK
        )
    assert "big.dat.part" in names(tmp_path) and "big.dat" not in names(tmp_path)
    server.tricks.clear()
    server.asked.clear()
    assert fetch_file(put(server, data=new), tmp_path, QUICK) == "fetched"
    assert len(server.asked) == 1 and server.asked[0][2], "If-Range lets the server send the new file in one answer"
    assert (tmp_path / "big.dat").read_bytes() == new and names(tmp_path) == ["big.dat"]


def test_another_piece_than_the_one_asked_for_leaves_no_hole(server, tmp_path):
    e = put(server, digest=False)
    server.tricks["big.dat"] = ["cut1000000", "other piece", ""]
    assert fetch_file(e, tmp_path, QUICK) == "fetched" and (tmp_path / "big.dat").read_bytes() == BIG


def test_a_whole_part_and_a_part_that_is_too_long(server, tmp_path):
    e = put(server)
    (tmp_path / "big.dat.part").write_bytes(BIG)
    assert fetch_file(e, tmp_path, QUICK) == "fetched" and len(server.asked) == 1
    (tmp_path / "big.dat").unlink()
    (tmp_path / "big.dat.part").write_bytes(BIG + b"more")
    assert fetch_file(e, tmp_path, QUICK) == "fetched" and (tmp_path / "big.dat").read_bytes() == BIG


def test_wrong_bytes_are_set_aside_fetched_once_more_then_told(server, tmp_path):
    e = put(server)
    server.tricks["big.dat"] = ["wrong", ""]
    assert fetch_file(e, tmp_path, QUICK) == "fetched" and names(tmp_path) == ["big.dat"]
    (tmp_path / "big.dat").unlink()
    server.tricks["big.dat"], server.asked[:] = ["wrong", "wrong", ""], []
    with pytest.raises(PeaceError, match="twice with the wrong bytes") as told: fetch_file(e, tmp_path, QUICK)
    assert len(server.asked) == 2 and names(tmp_path) == ["big.dat.wrong"] and e.digest[:12] in str(told.value)
    assert (tmp_path / "big.dat.wrong").read_bytes() == bytes(len(BIG))


def test_a_spoilt_file_on_the_disk_is_replaced_and_kept_until_then(server, tmp_path):
    e = put(server)
    (tmp_path / "big.dat").write_bytes(b"spoilt")
    server.tricks["big.dat"] = ["404"]
    with pytest.raises(PeaceError): fetch_file(e, tmp_path, QUICK)
    assert names(tmp_path) == ["big.dat.wrong"]
    assert fetch_file(e, tmp_path, QUICK) == "fetched" and names(tmp_path) == ["big.dat"]


def test_a_page_instead_of_a_file_is_refused_before_it_is_read(server, tmp_path):
    server.tricks["big.dat"] = ["page"]
    with pytest.raises(PeaceError, match="offers 26 bytes, but 3,072,000 were published"):
        fetch_file(put(server, size=len(BIG)), tmp_path, QUICK)
    assert names(tmp_path) == [] and len(server.asked) == 1


@pytest.mark.parametrize(
    "status, words, asks",
    [
        ("404", "HTTP 404", 1), ("403", "not open to everybody", 1), ("503", "busy or broken", 3),
        ("429", "busy or broken", 3), ("400", "HTTP 400", 1)
    ],
)
def test_a_status_is_one_clear_sentence(server, tmp_path, status, words, asks):
    e = put(server)
    server.tricks["big.dat"] = [status] * 9
    with pytest.raises(PeaceError, match=words) as told: fetch_file(e, tmp_path, QUICK)
    assert (
        len(server.asked) == asks
        and "big.dat" in str(told.value)
        and "\n" not in str(told.value)
        and names(tmp_path) == []
    )


def test_a_silent_server_and_a_trickle_time_out(server, tmp_path):
    e = put(server)
    server.tricks["big.dat"] = ["silent", ""]
    begin = time.monotonic()
    assert fetch_file(e, tmp_path, QUICK) == "fetched" and time.monotonic() - begin < 3
    (tmp_path / "big.dat").unlink()
    server.tricks["big.dat"] = ["trickle", ""]
    assert (
        fetch_file(e, tmp_path, dataclasses.replace(QUICK, slow_seconds=0.3)) == "fetched"
        and time.monotonic() - begin < 6
    )
    (tmp_path / "big.dat").unlink()
    server.tricks["big.dat"] = ["silent"] * 3
    with pytest.raises(PeaceError, match="was cut"): fetch_file(e, tmp_path, QUICK)
    assert "big.dat" not in names(tmp_path)


def test_no_server_at_all(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with pytest.raises(PeaceError, match="no connection to"):
        fetch_file(Expected("x", "0" * 64, urls=(f"http://127.0.0.1:{port}/x",)), tmp_path, QUICK)


def test_a_mirror_that_fails_is_followed_by_the_next_address(server, tmp_path):
    e = put(server)
    both = dataclasses.replace(e, urls=(server.base + "elsewhere", server.base + "big.dat"))
    assert fetch_file(both, tmp_path, QUICK) == "fetched"
    (tmp_path / "big.dat").unlink()
    server.files["stale"] = bytes(len(BIG))  # a mirror with other bytes: the second attempt asks the other one
    assert (
        fetch_file(dataclasses.replace(e, urls=(server.base + "stale", server.base + "big.dat")), tmp_path, QUICK)
        == "fetched"
    )


def test_a_full_disk_stops_everything_and_keeps_the_part(server, tmp_path, monkeypatch):
    many = [put(server, f"{i}.dat", BIG) for i in range(8)]
    class Full(io.FileIO):
        def write(self, block):
            if self.tell() > 500_000: raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(block)
    monkeypatch.setattr(
        download, "open",
        lambda p, mode="r", **k: (
            Full(p, mode.replace("b", "")) if str(p).endswith(".part") and mode[0] in "aw" else open(p, mode, **k)
        ),
        raising=False,
    )
    with pytest.raises(DiskFull, match="is full; what has arrived is kept"):
        fetch_files(many, tmp_path, QUICK, progress=False)
    left = names(tmp_path)
    assert (
        left
        and not any(n.endswith(".dat") for n in left)
        and len([n for n in left if n.endswith(".part")]) <= QUICK.jobs
    )
    monkeypatch.undo()
    os.environ["NO_PROXY"] = "127.0.0.1"
    assert fetch_files(many, tmp_path, QUICK, progress=False).fetched == 8 and names(tmp_path) == sorted(
        f"{i}.dat" for i in range(8)
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_the_operating_systems_own_full_disk_is_understood(tmp_path):
    with open("/dev/full", "wb", buffering=0) as f, pytest.raises(DiskFull):
        download._write(f, b"x", tmp_path / "x.part")


# ---------------------------------------------------------------- many files

def test_files_come_side_by_side_and_no_more_than_asked_for(server, tmp_path):
    many, server.delay = [put(server, f"d/{i}.dat", bytes([i]) * 1000) for i in range(24)], 0.05
    begin = time.monotonic()
    assert fetch_files(many, tmp_path, dataclasses.replace(QUICK, jobs=4), progress=False) == Fetched(0, 24, [])
    assert 2 <= server.most <= 4 and time.monotonic() - begin < 24 * 0.05
    server.asked.clear()
    assert fetch_files(many, tmp_path, QUICK, progress=False) == Fetched(24, 0, []) and not server.asked


def test_one_lost_file_does_not_stop_the_others_and_ten_stop_the_asking(server, tmp_path):
    many = [put(server, f"{i}.dat", bytes([i]) * 1000) for i in range(30)]
    del server.files["11.dat"]
    with pytest.raises(PeaceError, match="11.dat cannot be fetched"): fetch_files(many, tmp_path, QUICK, progress=False)
    assert len(names(tmp_path)) == 29
    server.files.clear()
    with pytest.raises(PeaceError, match="were not tried any more"):
        fetch_files([dataclasses.replace(e, path=f"x/{e.path}") for e in many], tmp_path, QUICK, progress=False)


def test_names_from_a_list_cannot_leave_the_folder(server, tmp_path):
    e = put(server, "escape", b"x")
    with pytest.raises(PeaceError, match="no plain path"):
        fetch_file(dataclasses.replace(e, path="../escape"), tmp_path / "in", QUICK)
    assert not (tmp_path / "escape").exists() and not server.asked


def test_a_killed_run_leaves_parts_only_and_is_continued(server, tmp_path):
    many = [put(server, f"{i}.dat", BIG[:-1] + bytes([i])) for i in range(6)]
    server.tricks = {e.path: ["pace"] for e in many[1:]}
    listed = json.dumps([[e.path, e.digest, e.urls[0]] for e in many])
    script = ("import json, sys; from peace_nb.datasets.download import *; from peace_nb.datasets.catalogue import Expected\n"
              "fetch_files([Expected(p, d, urls=(u,)) for p, d, u in json.loads(sys.argv[1])], sys.argv[2], Policy(jobs=2), progress=False)")
    run = subprocess.Popen([sys.executable, "-c", script, listed, str(tmp_path)])
    for _ in range(400):
        if any(p.stat().st_size > 1 << 19 for p in tmp_path.glob("*.part")): break
        time.sleep(0.02)
    run.kill()
    run.wait()
    left = names(tmp_path)
    parts = {n: (tmp_path / n).stat().st_size for n in left if n.endswith(".part")}
    assert parts and max(parts.values()) > 1 << 19
    for n in left:
        assert n.endswith((".part", ".part.json")) or (tmp_path / n).read_bytes() == server.files[n], (
            "what has its own name is whole"
        )
    server.tricks.clear()
    server.asked.clear()
    assert fetch_files(many, tmp_path, QUICK, progress=False).kept == len([n for n in left if n.endswith(".dat")])
    assert any(r for _, r, _ in server.asked), "parts are continued"
    assert names(tmp_path) == [f"{i}.dat" for i in range(6)]


# ---------------------------------------------------------------- a data set

def ludb(server, spoil=lambda files: None, records=12):
    "A miniature LUDB on the server."
    files = {
        "ludb.csv": b"ID\n1\n", "RECORDS": b"data/1\n", **{f"data/{i}.dat": bytes([i]) * 5000 for i in range(records)}
    }
    files["SHA256SUMS.txt"] = "".join(f"{hashlib.sha256(b).hexdigest()} {p}\n" for p, b in files.items()).encode()
    spoil(files)
    server.files.update(files)
    return dict(name="ludb", source=server.base, accept_licence=True, policy=QUICK, progress=False, say=quiet)


def test_a_data_set_is_whole_and_a_second_run_asks_for_nothing(server, tmp_path):
    call = ludb(server)
    assert download.download(to=tmp_path / "l", **call) == Fetched(0, 14, [])
    server.asked.clear()
    assert download.download(to=tmp_path / "l", **call) == Fetched(14, 0, []) and not server.asked
    assert catalogue.check_copy(catalogue.data_set("ludb"), tmp_path / "l", full=True)[1].ok
    (tmp_path / "l/data/3.dat").unlink()
    (tmp_path / "l/data/5.dat").write_bytes(b"?")
    found = catalogue.check_copy(catalogue.data_set("ludb"), tmp_path / "l", full=True)[1]
    assert (found.missing, found.wrong) == (["data/3.dat"], ["data/5.dat"])
    assert download.download(to=tmp_path / "l", **call) == Fetched(12, 2, [])


@pytest.mark.parametrize(
    "body, words",
    [
        (b"<html>log in</html>", "no list of checksums"), (b"", "does not name"),
        (b"0" * 64 + b" ../../x\n", "no plain path"), (b"0" * 64 + b" other.csv\n", "not the list of ludb"),
        (b"\xff\xfe\x00", "cannot be read")
    ],
)
def test_a_list_that_is_none(server, tmp_path, body, words):
    call = ludb(server, lambda files: files.update({"SHA256SUMS.txt": body}))
    with pytest.raises(PeaceError, match=words): download.download(to=tmp_path / "l", **call)
    assert not [n for n in names(tmp_path) if n.endswith((".dat", "/x"))]


def test_nothing_is_fetched_without_a_yes(server, tmp_path):
    call = {**ludb(server), "accept_licence": False}
    said = []
    with pytest.raises(PeaceError, match="--accept-licence"):
        download.download(to=tmp_path / "l", **{**call, "say": said.append})
    assert "ODC-By" in said[0]
    with pytest.raises(PeaceError, match="not accepted"): download.download(to=tmp_path / "l", ask=lambda q: "", **call)
    assert not server.asked and not (tmp_path / "l").exists()
    assert download.download(to=tmp_path / "l", ask=lambda q: "Yes", **call).fetched == 14
    assert download.download(to=tmp_path / "l", **call).kept == 14, "a licence once accepted is not asked for again"


def test_room_is_looked_for_before_the_first_byte(server, tmp_path, monkeypatch):
    call = ludb(server)
    monkeypatch.setattr(shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10**9, 10**9 - 10**7, 10**7))
    with pytest.raises(DiskFull, match="are free there; nothing was fetched"):
        download.download(to=tmp_path / "l", **call)
    assert not [n for n in names(tmp_path) if n.endswith(".dat")] and not server.asked


def test_some_records_only(server, tmp_path):
    call = ludb(server)
    # 1, 10, 11 and the two tables
    assert download.download(to=tmp_path / "l", only=("data/1*.dat",), **call).fetched == 5
    with pytest.raises(PeaceError, match="no file fits"):
        download.download(to=tmp_path / "l", only=("nothing/*",), **call)


def test_two_downloads_at_once_are_refused(server, tmp_path):
    call = ludb(server)
    (tmp_path / "l").mkdir()
    with FileLock(tmp_path / "l" / ".download.lock"), pytest.raises(PeaceError, match="is in use by another process"):
        download.download(to=tmp_path / "l", **call)


def test_the_command_line(server, tmp_path):
    ludb(server)
    def run(*args): return CliRunner().invoke(cli.app, list(map(str, args)))
    call = ("download", "ludb", "--to", tmp_path / "l", "--from", server.base, "--quiet")
    refused = run(*call)
    assert (
        isinstance(refused.exception, PeaceError)
        and "ODC-By" in refused.output
        and "--accept-licence" in str(refused.exception)
        and not server.asked
    )
    assert run(*call, "--accept-licence").exit_code == 0
    listed = run("datasets", "--root", f"ludb={tmp_path / 'l'}", "--full", "--json")
    row = {r["name"]: r for r in json.loads(listed.stdout)}["ludb"]
    assert (
        row["verified"] and row["state"] == "verified: all 14 files are as published" and row["licence"] == "ODC-By 1.0"
    )
    assert all(w in run("--help").output for w in ("download", "datasets", "prepare"))
    assert "ludb" in run("datasets").output and "NAME=DIR" in str(run("datasets", "--root", "ludb").exception)
    lost = subprocess.run(
        [sys.executable, "-c", "from peace_nb.cli import main; main()", "download", "nosuch", "--to", str(tmp_path)],
        capture_output=True, text=True
    )
    assert lost.returncode == 2 and "ptb-xl" in lost.stderr and len(lost.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_is_no_fault(server, tmp_path):
    ludb(server, records=200)
    server.delay = 0.2
    # a job in the background of a shell is born deaf to it
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    run = subprocess.Popen(
        [
            sys.executable, "-c", heard + "from peace_nb.cli import main; main()", "download", "ludb", "--to",
            str(tmp_path / "l"), "--from", server.base, "--accept-licence", "--quiet"
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if (tmp_path / "l" / "SHA256SUMS.txt").exists(): break
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "the same call goes on" in err and "Traceback" not in err
    assert len([n for n in names(tmp_path) if n.endswith((".dat", ".csv", "RECORDS"))]) < 200, (
        "the other threads stop too"
    )


def test_what_must_be_brought_is_explained_and_verified(tmp_path):
    said = []
    with pytest.raises(PeaceError, match="holds no copy of mimic-iv-ecg"):
        download.download("mimic-iv-ecg", tmp_path / "m", say=said.append)
    assert all(w in said[0] for w in ("account", "training", "data use agreement", "wget", "--user"))
    copy = tmp_path / "m/physionet.org/files/mimic-iv-ecg/1.0"
    files = {
        "record_list.csv": b"a", "machine_measurements.csv": b"b",
        **{f"files/p10/{i}.dat": bytes([i % 256]) * 9 for i in range(300)}
    }
    for p, b in files.items():
        (copy / p).parent.mkdir(parents=True, exist_ok=True)
        (copy / p).write_bytes(b)
    (copy / "SHA256SUMS.txt").write_text("".join(f"{hashlib.sha256(b).hexdigest()}  {p}\r\n" for p, b in files.items()))
    assert download.bring("mimic-iv-ecg", tmp_path / "m", progress=False, say=quiet) == Fetched(302, 0, [])
    (copy / "files/p10/17.dat").unlink()
    (copy / "files/p10/250.dat").write_bytes(b"!")
    with pytest.raises(PeaceError, match="1 missing .*17.dat.* 1 wrong .*250.dat"):
        download.bring("mimic-iv-ecg", tmp_path / "m", progress=False, say=said.append)
    assert [u.rsplit("/", 1)[1] for u in (tmp_path / "m/to-fetch.txt").read_text().split()] == ["17.dat", "250.dat"]


def test_zzu_from_end_to_end(server, tmp_path, monkeypatch):
    real, held = (
        catalogue.data_set("zzu-pecg"),
        {f"Child_ecg/P00/P{i:05d}/P{i:05d}_E01.dat": os.urandom(3000) for i in range(20)}
    )
    with zipfile.ZipFile(tmp_path / "w.zip", "w", zipfile.ZIP_DEFLATED) as z:
        for p, b in held.items(): z.writestr(p, b)
    archives.split_zip(tmp_path / "w.zip", tmp_path / "Child_ecg", 33_000)
    for f in real.files:
        server.files[f["path"]] = (tmp_path / f["path"]).read_bytes() if f["path"] in real.archive else b"Filename\n"
    own = dataclasses.replace(
        real, unpacked_bytes=0,
        files=tuple(
            {**f, "bytes": len(server.files[f["path"]]), "md5": hashlib.md5(server.files[f["path"]]).hexdigest()}
            for f in real.files
        ),
    )
    monkeypatch.setitem(catalogue.catalogue(), "zzu-pecg", own)
    call = dict(
        name="zzu-pecg", to=tmp_path / "z", source=server.base, accept_licence=True, policy=QUICK, progress=False,
        say=quiet
    )
    (tmp_path / "z").mkdir()
    for f in own.files: (tmp_path / "z" / f["path"]).write_bytes(server.files[f["path"]])       # brought with a browser
    assert "not unpacked" in catalogue.check_copy(own, tmp_path / "z")[0]
    for f in own.files: (tmp_path / "z" / f["path"]).unlink()
    assert download.download(**call) == Fetched(0, 5, [])
    server.asked.clear()
    assert download.download(**call, remove_archive=True) == Fetched(5, 0, []) and not server.asked
    assert download.download(**call) == Fetched(3, 0, []) and not server.asked, (
        "the archive is gone, its files are there"
    )
    assert all((tmp_path / "z" / p).read_bytes() == b for p, b in held.items())
    victim = tmp_path / "z" / next(iter(held))
    victim.write_bytes(b"rot")
    assert catalogue.check_copy(own, tmp_path / "z", full=True)[1].wrong == [next(iter(held))]
    assert download.download(**call) == Fetched(3, 2, []) and victim.read_bytes() == held[next(iter(held))], (
        "the archive is fetched again to mend a file"
    )


# ---------------------------------------------------------------- archives

def make(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in entries: z.writestr(name, data)
    return path


@pytest.mark.skipif(not shutil.which("zip"), reason="no zip command here")
def test_a_split_zip_made_by_zip(tmp_path):
    files = {f"Child_ecg/P00/{i}.dat": os.urandom(70_000) for i in range(8)} | {"Child_ecg/a name.hea": b"x"}
    for p, b in files.items():
        (tmp_path / p).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / p).write_bytes(b)
    subprocess.run(["zip", "-q", "-r", "-s", "128k", "Child_ecg.zip", "Child_ecg"], cwd=tmp_path, check=True)
    parts = sorted(tmp_path.glob("Child_ecg.z[0-9]*")) + [tmp_path / "Child_ecg.zip"]
    assert len(parts) > 3
    done = archives.unpack(parts, tmp_path / "out", progress=False)
    assert done["files"] == 9 and all((tmp_path / "out" / p).read_bytes() == b for p, b in files.items())
    with pytest.raises(PeaceError, match=f"archive of {len(parts)} parts, but {len(parts) - 1}"):
        archives.unpack(parts[1:], tmp_path / "o2", progress=False)
    parts[0].write_bytes(parts[0].read_bytes()[:-1000])
    with pytest.raises(PeaceError): archives.unpack(parts, tmp_path / "o3", progress=False)


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files")
def test_parts_beyond_four_gibibytes(tmp_path):
    "Offsets that need zip64, in a file of which only the end is really written."
    make(tmp_path / "w.zip", [("a.dat", b"far away")])
    data, far = bytearray((tmp_path / "w.zip").read_bytes()), 5 << 30
    at = data.rindex(b"PK\1\2")
    with open(tmp_path / "x.z01", "wb") as f:
        f.truncate(far)
        f.seek(far - at)
        f.write(data[:at])
    line = list(archives._ENTRY.unpack_from(data, at))
    extra = struct.pack("<2HQ", 1, 8, far - at)
    line[13], line[archives._OFFSET], line[archives._DISK] = len(extra), 0xFFFFFFFF, 0
    table = archives._ENTRY.pack(*line) + b"a.dat" + extra
    (tmp_path / "x.zip").write_bytes(table + archives._END.pack(b"PK\5\6", 1, 1, 1, 1, len(table), 0, 0))
    with archives.open_zip([tmp_path / "x.z01", tmp_path / "x.zip"]) as z: assert z.read("a.dat") == b"far away"


def link(name, mode=stat.S_IFLNK):
    i = zipfile.ZipInfo(name)
    i.external_attr = (mode | 0o777) << 16
    return i


@pytest.mark.parametrize(
    "entries, words",
    [
        ([("ok.dat", b"1"), ("../out.dat", b"x")], "no plain path"),
        ([("ok.dat", b"1"), ("/tmp/out.dat", b"x")], "no plain path"),
        ([("ok.dat", b"1"), ("a\\..\\..\\out.dat", b"x")], "no plain path"),
        ([("ok.dat", b"1"), ("C:/out.dat", b"x")], "no plain path"),
        ([("ok.dat", b"1"), (link("l"), b"/etc"), ("l/out.dat", b"x")], "link or a device"),
        ([("ok.dat", b"1"), (link("f", stat.S_IFIFO), b"")], "link or a device"),
        ([("ok.dat", b"1"), ("bomb.dat", bytes(30_000_000))], "zip bomb"),
        ([("ok.dat", b"1")] + [(f"{i}", bytes(9_500_000)) for i in range(6)], "zip bomb"),
        ([("ok.dat", b"1"), ("OK.DAT", b"2")], "twice")
    ],
)
def test_an_archive_that_attacks_writes_nothing(tmp_path, entries, words):
    with pytest.raises(PeaceError, match=words):
        archives.unpack([make(tmp_path / "a.zip", entries)], tmp_path / "in" / "to", progress=False)
    assert names(tmp_path) == ["a.zip"] and not Path("/tmp/out.dat").exists()


def test_overlapping_entries_are_refused(tmp_path):
    "The quine-like bomb: many lines of the table, one and the same packed data."
    data = bytearray(make(tmp_path / "w.zip", [("a", os.urandom(200_000))]).read_bytes())
    at = data.rindex(b"PK\1\2")
    end = list(archives._END.unpack(data[-archives._END.size :]))
    table = data[at:-archives._END.size]
    copies = b"".join(bytes(table[:-1]) + bytes([65 + i]) for i in range(20))
    end[3] = end[4] = 20
    end[5] = len(copies)
    (tmp_path / "a.zip").write_bytes(bytes(data[:at]) + copies + archives._END.pack(*end))
    with pytest.raises(PeaceError, match="overlap"):
        archives.unpack([tmp_path / "a.zip"], tmp_path / "to", progress=False)
    assert not list((tmp_path / "to").rglob("*"))


def test_an_archive_larger_than_its_room(tmp_path):
    a = make(tmp_path / "a.zip", [("x.dat", os.urandom(50_000))])
    with pytest.raises(PeaceError, match="are there for it"):
        archives.unpack([a], tmp_path / "to", max_bytes=10_000, progress=False)


def test_a_damaged_member_is_named_and_the_others_are_written(tmp_path):
    a = make(tmp_path / "w.zip", [(f"{i}.dat", os.urandom(20_000)) for i in range(5)])
    parts = archives.split_zip(a, tmp_path / "s", 45_000)
    data = bytearray(parts[1].read_bytes())
    data[5_000] ^= 0xFF
    parts[1].write_bytes(data)
    with pytest.raises(PeaceError, match="1 of 5 files in s.zip are damaged, the first is 2.dat"):
        archives.unpack(parts, tmp_path / "to", contents=tmp_path / "c.csv", progress=False)
    assert names(tmp_path / "to") == ["0.dat", "1.dat", "3.dat", "4.dat"] and not (tmp_path / "c.csv").exists()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_on_our_own_disk_is_not_followed(tmp_path):
    a = make(tmp_path / "a.zip", [("d/x.dat", b"new")])
    (tmp_path / "out").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "d").symlink_to(tmp_path / "out")
    with pytest.raises(PeaceError, match="through a link"): archives.unpack([a], tmp_path / "to", progress=False)
    assert not list((tmp_path / "out").iterdir())


# ---------------------------------------------------------------- the real thing

def test_the_published_list_of_ludb(samples):
    "Every signal, header and annotation of the copy is the published one; text files may differ in their line ends."
    d = catalogue.data_set("ludb")
    found = catalogue.verify_files(samples / "ludb", catalogue.expected_files(d, samples / "ludb"), progress=False)
    assert found.total == 2805 and not found.missing and set(found.wrong) <= {"ANNOTATORS", "LICENSE.txt", "README"}


def test_the_quick_check_of_copies_made_by_hand(tmp_path):
    real, z = catalogue.data_set("zzu-pecg"), tmp_path / "z"
    tables = {
        "AttributesDictionary.csv": b"Filename\nP00/P00001/P00001_E01\n", "ECGCode.csv": b"a", "DiseaseCode.csv": b"b"
    }
    own = dataclasses.replace(
        real,
        files=tuple(
            {
                **f,
                **(
                    {"bytes": len(tables[f["path"]]), "md5": hashlib.md5(tables[f["path"]]).hexdigest()}
                    if f["path"] in tables
                    else {}
                ),
            }
            for f in real.files
        ),
    )
    z.mkdir()
    for t, b in tables.items(): (z / t).write_bytes(b)
    assert "2 missing" in catalogue.check_copy(own, z)[0]
    (z / "Child_ecg/P00/P00001").mkdir(parents=True)
    for end in (".hea", ".dat"): (z / f"Child_ecg/P00/P00001/P00001_E01{end}").write_bytes(b"x")
    assert "archive is not there; the records looked for are" in catalogue.check_copy(own, z)[0]
    (z / "ECGCode.csv").write_bytes(b"?")
    assert "1 wrong (first: ECGCode.csv)" in catalogue.check_copy(own, z)[0]
    assert (
        "not verified: SHA256SUMS.txt is not there" in catalogue.check_copy(catalogue.data_set("ludb"), z)[0]
        or "not this data set" in catalogue.check_copy(catalogue.data_set("ludb"), z)[0]
    )


def test_roots_are_looked_for_in_three_places(tmp_path, monkeypatch):
    monkeypatch.setenv("PEACE_LUDB", str(tmp_path / "environment"))
    monkeypatch.delenv("PEACE_PTB_XL", raising=False)
    ini = (
        (Path(__file__).parents[1] / "settings.ini")
        .read_text(encoding="utf-8")
        .replace("ptbxl_root = simulated", f"ptbxl_root = {tmp_path.as_posix()}", 1)
    )
    (tmp_path / "settings.ini").write_text(ini, encoding="utf-8")
    monkeypatch.setenv("PEACE_SETTINGS", str(tmp_path / "settings.ini"))
    found = catalogue.find_roots()
    assert (
        found["ludb"] == (tmp_path / "environment", "$PEACE_LUDB")
        and found["ptb-xl"][0] == tmp_path
        and "settings.ini" in found["ptb-xl"][1]
    )
    assert catalogue.find_roots({"ludb": "x"})["ludb"] == (Path("x"), "the command line")
    with pytest.raises(PeaceError, match="no data set 'ludbb'"): catalogue.find_roots({"ludbb": "x"})


def test_the_catalogue_is_complete():
    for d in catalogue.catalogue().values():
        assert d.checked and d.terms and d.facts.records and d.access in ("open", "credentialed", "information")
        assert bool(d.sums) != bool(d.files) and (not d.sums or d.sums_at.endswith(d.sums))
        assert all(re.fullmatch("[0-9a-f]{32}", f["md5"]) for f in d.files)
