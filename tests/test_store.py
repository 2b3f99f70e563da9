"The store under a kill, in several processes, damaged, and against independent reads."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from peace_nb.cohorts.load import load_cohort
from peace_nb.signals.prepare import LEADS, SignalSpec
from peace_nb.store.build import build_store
from peace_nb.store.store import SignalStore
from peace_nb.store.batches import StoreDataset
from peace_nb.store.writer import to_int16, to_mv
from peace_nb.settings import PeaceError

SAMPLE = os.environ.get("PEACE_SAMPLE_DATA")
real = pytest.mark.skipif(not SAMPLE, reason="PEACE_SAMPLE_DATA is not set: no real records to read")
SPEC = SignalSpec(fs=100)


def write_ptbxl(root: Path, n: int, seconds=10):
    "A cohort in PTB-XL's layout, of noise; patient i // 2 owns record i."
    rng = np.random.default_rng(0)
    home = root / "records500" / "00000"
    home.mkdir(parents=True)
    for i in range(1, n + 1):
        d = np.rint(rng.normal(0, 300, (500 * seconds, 12))).astype("int16")
        wfdb.wrsamp(
            f"{i:05d}_hr", fs=500, units=["mV"] * 12, sig_name=[lead.upper() for lead in LEADS], d_signal=d, fmt=["16"] * 12,
            adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(home)
        )
    pd.DataFrame(
        {
            "ecg_id": range(1, n + 1), "patient_id": [i // 2 for i in range(n)], "age": 50, "sex": 0, "report": "",
            "scp_codes": "{'NORM': 100.0, 'SR': 0.0}", "strat_fold": [i // 2 % 10 + 1 for i in range(n)],
            "filename_lr": "", "filename_hr": [f"records500/00000/{i:05d}_hr" for i in range(1, n + 1)]
        }
    ).to_csv(root / "ptbxl_database.csv", index=False)
    pd.DataFrame(
        {"diagnostic": [1], "form": [0], "rhythm": [0], "diagnostic_class": ["NORM"], "diagnostic_subclass": ["NORM"]},
        index=["NORM"]
    ).to_csv(root / "scp_statements.csv")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory): return write_ptbxl(tmp_path_factory.mktemp("cohort"), 100)


def contents(path: Path) -> dict: return {p.name: p.read_bytes() for p in sorted(path.iterdir())}


@settings(deadline=None)
@given(arrays(np.float32, 200, elements=st.floats(-32.5, 32.5, width=32)))
def test_storing_costs_at_most_half_a_microvolt(mv):
    units, clipped = to_int16(mv)
    # float32 itself steps by 0.002 µV at 30 mV
    assert clipped == 0 and np.abs(units.astype(float) - mv.astype(float) * 1000).max() <= 0.5 + 0.002
    assert np.abs(to_mv(units) - mv).max() <= 0.5e-3 + 4e-6


BUILD = """
import sys
from peace_nb.cohorts.load import load_cohort
from peace_nb.store.build import build_store
from peace_nb.signals.prepare import SignalSpec
if __name__ == "__main__":
    build_store(load_cohort("ptb-xl", sys.argv[1]), SignalSpec(fs=100), sys.argv[2], jobs=int(sys.argv[3]), chunk=4, progress=False)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a POSIX signal")
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_and_resumed_is_byte_identical(root, tmp_path, jobs):
    whole = build_store(load_cohort("ptb-xl", root), SPEC, tmp_path / "whole", chunk=4, progress=False)
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    def run():
        return subprocess.Popen(
            [sys.executable, str(script), str(root), str(tmp_path / "killed"), str(jobs)], start_new_session=True
        )
    process, parts = run(), tmp_path / "killed.partial" / "parts"
    deadline = time.time() + 120
    while len(list(parts.glob("*.json"))) < 2 and time.time() < deadline: time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists(), "the build was over before it could be killed"
    with pytest.raises(PeaceError, match="not a signal store.*resume"): SignalStore.open(tmp_path / "killed")
    done = len(list(parts.glob("*.json")))
    assert 2 <= done < 25
    with open(tmp_path / "killed.partial" / "signals.npy", "ab") as f: f.write(b"half a chunk, not vouched for")
    assert run().wait() == 0
    assert contents(tmp_path / "killed") == contents(whole.path)


def test_one_process_or_two_give_the_same_bytes(root, tmp_path):
    cohort = load_cohort("ptb-xl", root)
    one, two = (build_store(cohort, SPEC, tmp_path / str(j), jobs=j, chunk=10, progress=False) for j in (1, 2))
    assert contents(one.path) == contents(two.path)


def test_another_plan_does_not_continue_a_killed_build(root, tmp_path):
    "The remains of a build with another specification are thrown away, not mixed in."
    cohort = load_cohort("ptb-xl", root).part([str(i) for i in range(1, 13)])
    remains = tmp_path / "s.partial" / "parts"
    remains.mkdir(parents=True)
    (remains.parent / "plan.json").write_text(json.dumps({"plan": "another"}))
    (remains / "0000000.json").write_text('{"rows": 5}')
    store = build_store(cohort, SPEC, tmp_path / "s", progress=False)
    assert len(store) == 12 and store.verify()


def test_built_twice_is_opened_and_changed_is_refused(root, tmp_path):
    cohort = load_cohort("ptb-xl", root).part(["1", "2", "3"])
    first = build_store(cohort, SPEC, tmp_path / "s", progress=False)
    stamp = (first.path / "signals.npy").stat().st_mtime_ns
    assert build_store(cohort, SPEC, tmp_path / "s", progress=False).fingerprint == first.fingerprint
    assert (first.path / "signals.npy").stat().st_mtime_ns == stamp
    with pytest.raises(PeaceError, match="delete it or choose another path"):
        build_store(cohort.part(["1", "2"]), SPEC, tmp_path / "s", progress=False)
    with pytest.raises(PeaceError, match="was asked for"):
        build_store(cohort, SignalSpec(fs=250), tmp_path / "s", progress=False)


DAMAGE = {
    "signals.npy is damaged: it has": lambda p: (p / "signals.npy").write_bytes(
        (p / "signals.npy").read_bytes()[:-100]
    ),
    "signals.npy is damaged: its header": lambda p: (p / "signals.npy").write_bytes(
        b"noise" + (p / "signals.npy").read_bytes()[5:]
    ),
    "labels.parquet is missing": lambda p: (p / "labels.parquet").unlink(),
    "table.parquet is damaged": lambda p: (p / "table.parquet").write_bytes(b"PAR1 noise"),
    "labels.parquet is damaged: it has 1 rows": lambda p: (
        pd.read_parquet(p / "labels.parquet").iloc[:1].to_parquet(p / "labels.parquet")
    ),
    "store.json cannot be read": lambda p: (p / "store.json").write_text("{"),
    "no store.json": lambda p: (p / "store.json").unlink(),
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_a_damaged_store_is_refused(root, tmp_path, sentence):
    store = build_store(load_cohort("ptb-xl", root).part(["1", "2", "3"]), SPEC, tmp_path / "s", progress=False)
    DAMAGE[sentence](store.path)
    with pytest.raises(PeaceError, match=sentence): SignalStore.open(store.path)


def test_verify_finds_a_flipped_bit(root, tmp_path):
    store = build_store(load_cohort("ptb-xl", root).part(["1", "2", "3"]), SPEC, tmp_path / "s", progress=False)
    raw = bytearray((store.path / "signals.npy").read_bytes())
    raw[5000] ^= 1
    (store.path / "signals.npy").write_bytes(bytes(raw))
    with pytest.raises(PeaceError, match="damaged between records 0 and 2"): SignalStore.open(store.path).verify()


def test_clipped_samples_are_counted(tmp_path):
    x = np.zeros((2, 12, 1000), np.float32)
    x[0, 0, :7] = 40
    ids = pd.Index(["a", "b"])
    store = SignalStore.create(
        tmp_path / "s", SPEC,
        [
            (
                x, np.ones((2, 12), bool), pd.DataFrame({"patient_id": ["1", "2"]}, index=ids),
                pd.DataFrame({"NORM": [1.0, 0.0]}, index=ids)
            )
        ],
    )
    assert store.meta["clipped_samples"] == 7 and store.batch([0])[0].max() == pytest.approx(32.767)


def test_memory_does_not_grow_with_the_store(tmp_path):
    "240 MB of signals are written and read back in less than half of that."
    code = f"""
import resource, numpy as np, pandas as pd
from peace_nb.store.store import SignalStore
from peace_nb.signals.prepare import SignalSpec
spec = SignalSpec(fs=500)
def blocks(k, b=50):
    for i in range(k):
        ids = pd.Index([f"r{{i * b + j}}" for j in range(b)])
        table, labels = pd.DataFrame({{"patient_id": ids}}, index=ids), pd.DataFrame({{"NORM": 1.}}, index=ids)
        yield np.full((b, 12, spec.n), .1, np.float32), np.ones((b, 12), bool), table, labels
SignalStore.create({str(tmp_path / "small")!r}, spec, blocks(2))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = SignalStore.create({str(tmp_path / "large")!r}, spec, blocks(40))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, store.array.nbytes / 2**20)
"""
    pytest.importorskip("resource")
    grown, size = map(
        float, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert size > 220 and grown < size / 2, (grown, size)


def test_batches_survive_worker_processes(root, tmp_path):
    store = build_store(
        load_cohort("ptb-xl", root).part([str(i) for i in range(1, 21)]), SPEC, tmp_path / "s", progress=False
    )
    data = StoreDataset(store)
    here = [b["signals"].numpy() for b in data.loader(8)]
    there = [b["signals"].numpy() for b in data.loader(8, num_workers=1, multiprocessing_context="spawn")]
    assert all(np.array_equal(a, b) for a, b in zip(here, there)) and len(here) == len(there) == 3


@real
@pytest.mark.parametrize("name", ["ptb-xl", "zzu-pecg"])
def test_real_records_against_an_independent_read(name, tmp_path):
    "Unfiltered at 500 Hz, the store must hold what wfdb reads, lead by lead, to half a microvolt."
    cohort = load_cohort(name, Path(SAMPLE) / f"{name}-sample")
    cohort = cohort.part(cohort.table.index[:20])
    store = build_store(cohort, SignalSpec(fs=500, band=None), tmp_path / "s", progress=False)
    assert (
        store.table.index.tolist() == cohort.table.index.tolist()
        and len(store.set_aside) == 0
        and store.meta["clipped_samples"] == 0
    )
    for i, path in enumerate(store.table.path):
        rec = wfdb.rdrecord(str(cohort.root / path))
        x, mask = (v[0] for v in store.batch([i]))
        for lead, row, m in zip(LEADS, x, mask):
            at = [n.lower() for n in rec.sig_name].index(lead.lower())
            assert m and np.abs(row - rec.p_signal[:5000, at]).max() <= 0.5e-3 + 5e-6, (path, lead)
    assert np.array_equal(
        np.nan_to_num(store.labels.to_numpy(), nan=-1), np.nan_to_num(cohort.labels.to_numpy(np.float32), nan=-1)
    )
