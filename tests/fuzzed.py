"What every input of the fuzzer has to obey, whether the fuzzer made it today or a file of tests/data holds it."
import time
from pathlib import Path

import numpy as np
from wfdb_by_hand import meant

from peace_nb.cohorts.records import read_record
from peace_nb.settings import PeaceError
from peace_nb.signals.prepare import LEADS

SLOW = 20     # seconds; a header is read in a millisecond
SEEDS = [b"""r 12 500 0
""" + b"".join(b"r.dat 16 1000(0)/mV 16 0 0 0 0 %s\n" % lead.encode() for lead in LEADS),
         b"r 2 250/500(7.5) 0 12:00:00 31/12/2006\nr.dat 212x2:1+4 200(-5)/uV 12 0 0 0 0 II\nr.dat 212x2:1+4 0 12 9 0 0 0 V1\n#Age: 7\n",
         b"r 2 125\ns.dat 8 1e3(0)/mV 8 0 -20 0 0 I\n~ 0 200 12 0 0 0 0 V6\n",
         "r 2 1.0E+02 0\nr.dat 61 1.5E+03(0.0)/µV 16 0 0 0 0 -aVR\nr.dat 61 1/mmHg 16 0 0 0 0 ABP\n".encode(),
         "\ufeffr 1 360\r\n# Größe\r\ns.dat 80 100(+5)/µV 8 0 0 0 0 Lead II\r\n".encode(),
         b"r/4 1 100 350\nlay 0\nra 100\n~ 150\nrb 100\n", b"r/2 1 100 200\nra 100\nrb 100\n",
         b"r 1 100 0\nr.dat 311 -200 10 0 0 0 0 V3\n", b"r 1 100 0\ns.dat 310 200 10 9\n",
         b"r 1 100 0\nr.dat 24+3 2e8/V 24 0 0 0 0 V4\n",
         b"r 1 100\nr.dat 32:2 1e9/nV 32 0 0 0 0 V5\n", b"r 1 100\nr.dat 160 30000 16 3000 0 0 0 aVL # noisy\n", b""]


def shelf(folder: Path) -> Path:
    "The files beside the header under test: two signal files, two segments and a layout."
    rng = np.random.default_rng(0)
    for name, n in (("r", 2400), ("s", 600)):
        (folder / f"{name}.dat").write_bytes(np.cumsum(rng.integers(-9, 10, n // 2)).astype("<i2").tobytes())
    for name, unit, scale in (("ra", "mV", 1), ("rb", "uV", 1000)):
        v = np.cumsum(rng.integers(-9, 10, 100))
        v.astype("<i2").tofile(folder / f"{name}.dat")
        line = f"{name}.dat 16 {1000 // scale}(0)/{unit} 16 0 {v[0]} {v.sum() % 65536} 0 II"
        (folder / f"{name}.hea").write_text(f"{name} 1 100 100\n{line}\n")
    (folder / "lay.hea").write_text("lay 1 100 0\n~ 0 1(0)/uV 16 0 0 0 0 II\n")
    return folder


def check_header(data: bytes, folder: Path) -> str:
    "Read a header beside the files of `shelf`: right (`read`), or one sentence (its kind); raises on anything else."
    (folder / "r.hea").write_bytes(data)
    begin = time.process_time()
    try: found, said = read_record(folder / "r", min_seconds=0), "read"
    except PeaceError as e: found, said = None, e
    assert time.process_time() - begin < SLOW, "it takes too long"
    if found is None:
        text = str(said)
        assert "\n" not in text and "\r" not in text and len(text) < 1000, text
        assert str(folder) in text or "segment" in text, text
        return said.kind
    x, names, fs = found
    assert x.shape[0] == len(names) and np.isfinite(fs) and 50 <= fs <= 20_000 and not np.isinf(x).any()
    if (wanted := meant(data, folder)) is None: return "read with a liberty"
    leads, rate = wanted
    if not {*names} <= {*LEADS}: return "read, names not compared"      # whose rate counts depends on what is a lead
    for name, lead in leads.items():
        mine = x[names.index(name)]
        assert mine.shape == lead.shape, (name, mine.shape, lead.shape)
        np.testing.assert_allclose(mine, lead, atol=5e-4, rtol=1e-6, err_msg=name)
    assert abs(fs / rate - round(fs / rate)) < 1e-6
    return "read"
