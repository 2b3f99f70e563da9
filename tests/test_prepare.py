"Preparing a cohort: a real kill, what was set aside, the fast paths on real files, and what is refused."
import os, platform, re, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from scipy import signal as sps

from peace_nb.cohorts import records
from peace_nb.signals import kernels
from peace_nb.cohorts.load import load_cohort
from peace_nb.signals.prepare import FAULTS, SignalSpec, prepare_flagged
from peace_nb.store import build, quick as one_pass
from peace_nb.store.quick import prepare_counts
from peace_nb.simulation.cohorts import write_simulated_cohort
from peace_nb.store.build import build_store
from peace_nb.store.build import SpooledCohort, spool
from peace_nb.store.writer import to_int16
from peace_nb.prepare import plan, prepare_cohort
from peace_nb.settings import PeaceError

SPEC = SignalSpec(fs=100)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort") / "raw"
    write_simulated_cohort("zzu-pecg", root, 45, seed=9)
    return root


SCRIPT = """
import sys
from peace_nb.signals.prepare import SignalSpec
from peace_nb.store.store import SignalStore
from peace_nb.store.build import SpooledCohort, build_store
if __name__ == "__main__": build_store(SpooledCohort(sys.argv[1]), SignalSpec(fs=100), sys.argv[2], chunk=4, progress=False)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a POSIX signal")
def test_killed_twice_and_nothing_is_lost_or_done_again(root, tmp_path):
    cohort = load_cohort("zzu-pecg", root)
    tables, out, script = spool(cohort, tmp_path / "tables"), tmp_path / "killed", tmp_path / "build.py"
    script.write_text(SCRIPT)
    whole = build_store(SpooledCohort(tables), SPEC, tmp_path / "whole", chunk=4, progress=False)
    parts, before = tmp_path / "killed.partial" / "parts", {}
    for least in (2, 5):
        process = subprocess.Popen([sys.executable, str(script), str(tables), str(out)], start_new_session=True)
        while process.poll() is None and len(list(parts.glob("*.json"))) < least: time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not out.exists(), "the build was over before it could be killed"
        stamps = {p.name: p.stat().st_mtime_ns for p in parts.glob("*.json")}
        assert len(stamps) >= least and all(stamps[k] == v for k, v in before.items()), (
            "a finished chunk was done again"
        )
        before = stamps
    resumed = build_store(SpooledCohort(tables), SPEC, out, chunk=4, progress=False)
    for f in sorted(p.name for p in whole.path.iterdir()):
        assert (whole.path / f).read_bytes() == (resumed.path / f).read_bytes(), f
    assert len(resumed) + len(resumed.set_aside) == len(cohort.table)


def test_tables_from_disk_give_the_same_store(root, tmp_path):
    cohort = load_cohort("zzu-pecg", root)
    a = build_store(cohort, SPEC, tmp_path / "a", progress=False, chunk=16)
    b = build_store(SpooledCohort(spool(cohort, tmp_path / "t")), SPEC, tmp_path / "b", progress=False, chunk=16)
    assert (
        np.array_equal(a.array, b.array)
        and a.labels.equals(b.labels)
        and a.table.index.equals(b.table.index)
        and a.meta["source"] == b.meta["source"]
    )
    pd.testing.assert_frame_equal(a.table.fillna("-"), b.table.fillna("-"), check_dtype=False)


def test_what_is_set_aside_is_told_by_kind(root, tmp_path):
    said, raw = [], tmp_path / "raw"
    write_simulated_cohort("zzu-pecg", raw, 12, seed=4)
    paths = load_cohort("zzu-pecg", raw).table.path
    (raw / f"{paths.iloc[0]}.dat").unlink()
    dat = raw / f"{paths.iloc[1]}.dat"
    dat.write_bytes(dat.read_bytes()[:-10])
    (raw / f"{paths.iloc[2]}.hea").write_text("nothing")
    store = prepare_cohort("zzu-pecg", raw, tmp_path / "stores", jobs=1, spec=SPEC, report=False, say=said.append)
    assert store.set_aside.columns.tolist() == ["record_id", "kind", "reason"] and set(store.set_aside.kind) <= set(
        FAULTS
    )
    assert dict(zip(store.set_aside.record_id, store.set_aside.kind)) == dict(
        zip(paths.index[:3], ("missing signal", "truncated", "bad header"))
    )
    assert (
        re.search(r"about [\d,]+ records a second", said[0])
        and "3 set aside" in said[-1]
        and not list((tmp_path / "stores").glob("*.tables"))
    )


def test_what_is_refused(root, tmp_path, monkeypatch):
    with pytest.raises(PeaceError, match="is not a folder"):
        prepare_cohort("zzu-pecg", tmp_path / "no", tmp_path / "s", report=False)
    with pytest.raises(PeaceError, match="at least one process"):
        prepare_cohort("zzu-pecg", root, tmp_path / "s", jobs=0)
    monkeypatch.setattr("peace_nb.prepare.shutil.disk_usage", lambda p: type("U", (), {"free": 1000})())
    with pytest.raises(PeaceError, match="GB free, but the store needs"):
        plan(load_cohort("zzu-pecg", root), SPEC, tmp_path / "s", 1)
    assert not (tmp_path / "s" / "zzu-pecg").exists()


def headers():
    home = os.environ.get("PEACE_SAMPLE_DATA")
    return sorted(Path(home).rglob("*.hea")) if home else []


@pytest.mark.skipif(not headers(), reason="PEACE_SAMPLE_DATA is not set: no real records to read")
def test_real_headers_as_wfdb_reads_them():
    read = 0
    for f in headers()[::7]:
        stem = str(f.with_suffix(""))
        mine, theirs = records.plain_header(stem), wfdb.rdheader(stem)
        if mine is not None:
            assert vars(mine) == vars(theirs), f
            read += 1
    assert read > 50


@pytest.mark.skipif(not headers(), reason="PEACE_SAMPLE_DATA is not set: no real records to read")
def test_real_signals_are_filtered_and_resampled_as_scipy_does():
    if not kernels.warm(): pytest.skip("there is no compiler on this machine")
    sos = np.vstack(
        [sps.butter(2, 0.5, "highpass", fs=500, output="sos"), sps.butter(4, 40, "lowpass", fs=500, output="sos")]
    )
    for f in [h for h in headers() if "records500" in str(h)][:20]:
        x = wfdb.rdrecord(str(f.with_suffix(""))).p_signal.T.astype(np.float32)
        assert np.abs(kernels.sosfiltfilt(sos, x, 1000) - sps.sosfiltfilt(sos, x, padlen=1000)).max() < 1e-9
        assert np.abs(kernels.resample_poly(x, 1, 5) - sps.resample_poly(x, 1, 5, axis=-1, padtype="line")).max() < 1e-6


@pytest.mark.skipif(not headers(), reason="PEACE_SAMPLE_DATA is not set: no real records to read")
@pytest.mark.parametrize("name", ["ptb-xl", "zzu-pecg"])
def test_the_quick_way_gives_what_the_careful_way_gives(name, monkeypatch):
    "Every step of it may stand aside; where it does not, the record in the store is the same, and so are mask, flags and clipping."
    if not kernels.warm(): pytest.skip("there is no compiler on this machine")
    cohort, quick = load_cohort(name, Path(os.environ["PEACE_SAMPLE_DATA"]) / f"{name}-sample"), 0
    ids = cohort.table.index[::5] if len(cohort.table) > 100 else cohort.table.index
    for spec in (
        SPEC, SignalSpec(fs=500), SignalSpec(fs=360, seconds=11, band=(0, 30), leads=("V6", "aVR", "II")),
        SignalSpec(fs=500, band=None), SignalSpec(fs=100, how="squeeze")
    ):
        for rid in ids:
            counts, check = cohort.counts(rid) or (None, None)
            if counts is None or (made := prepare_counts(counts, spec, check)) is None: continue
            x, mask, flags = prepare_flagged(*cohort.raw(rid), spec)
            units, clipped = to_int16(x)
            assert (
                np.array_equal(made[1], mask)
                and made[2] == flags
                and made[3] == clipped
                and np.abs(made[0].astype(int) - units).max()
                <= int(platform.machine().lower() not in ("x86_64", "amd64"))
            ), (rid, spec)
            quick += 1
    assert quick > 2 * len(ids)


HARM = {
    "missing header": lambda hea, dat: hea.unlink(), "missing signal": lambda hea, dat: dat.unlink(),
    "bad header": lambda hea, dat: hea.write_bytes(hea.read_bytes()[:60]),
    "truncated": lambda hea, dat: dat.write_bytes(dat.read_bytes()[:-2]),
    "checksum": lambda hea, dat: dat.write_bytes(bytes([dat.read_bytes()[0] ^ 1]) + dat.read_bytes()[1:]),
    "absurd size": lambda hea, dat: hea.write_text(re.sub(r"^(\S+ \d+ \d+) \d+", r"\1 1000000000", hea.read_text())),
    "unit": lambda hea, dat: hea.write_text(hea.read_text().replace("/mV", "/mmHg", 1)),
    "too short": lambda hea, dat: hea.write_text(re.sub(r"^(\S+ \d+ \d+) \d+", r"\1 1000", hea.read_text())),
    "sampling rate": lambda hea, dat: hea.write_text(re.sub(r"^(\S+ \d+) \d+", r"\1 20", hea.read_text())),
    "wrong file": lambda hea, dat: hea.write_text(
        hea.read_text().replace(".dat", ".xyz").replace(hea.stem, "../" + hea.stem)
    ),
    "no usable lead": lambda hea, dat: silent(hea, dat),
}


def silent(hea, dat):
    dat.write_bytes(bytes(len(dat.read_bytes())))
    hea.write_text(
        "\n".join(
            l if k == 0 else re.sub(r" -?\d+ -?\d+ (\d+ \S+)$", r" 0 0 \1", l)
            for k, l in enumerate(hea.read_text().splitlines())
        )
    )


def test_the_quick_way_lets_no_fault_through(tmp_path):
    "Every kind of fault, once with the compiled way open and once without: the same records set aside, in the same words."
    raw = tmp_path / "raw"
    write_simulated_cohort("ptb-xl", raw, 14, seed=3)
    cohort = load_cohort("ptb-xl", raw)
    for path, harm in zip(cohort.table.path, HARM.values()): harm(raw / f"{path}.hea", raw / f"{path}.dat")
    if not kernels.warm(): pytest.skip("there is no compiler on this machine")
    quick = build_store(cohort, SPEC, tmp_path / "quick", progress=False)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(kernels, "COMPILED", {})
        m.setattr(one_pass, "COMPILED", {})
        m.setattr(build, "warm", lambda: False)
        m.setattr(build, "warmed", lambda: False)
        careful = build_store(cohort, SPEC, tmp_path / "careful", progress=False)
    assert quick.set_aside.equals(careful.set_aside) and quick.fingerprint == careful.fingerprint
    assert quick.set_aside.kind.tolist()[:5] == list(HARM)[:5] and len(quick.set_aside) == len(HARM), quick.set_aside
