"Bad input: each record that cannot be used ends in one sentence naming its file, and a cohort goes on without it."
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from hypothesis import HealthCheck, example, given, settings, strategies as st

from peace_nb.cohorts.load import load_cohort
from peace_nb.cohorts.records import read_record
from peace_nb.signals.prepare import LEADS, SignalSpec, prepare_flagged
from peace_nb.simulation.cohorts import write_simulated_cohort
from peace_nb.store.build import build_store
from peace_nb.settings import PeaceError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    "(header text, data bytes) of a good record named `r`."
    d, rng = tmp_path_factory.mktemp("good"), np.random.default_rng(0)
    wfdb.wrsamp(
        "r", fs=500, units=["mV"] * 12, sig_name=list(LEADS), p_signal=rng.normal(0, 0.3, (3000, 12)), fmt=["16"] * 12,
        write_dir=str(d)
    )
    return (d / "r.hea").read_text(), (d / "r.dat").read_bytes()


def put(folder: Path, hea, dat, name="r") -> Path:
    (folder / f"{name}.hea").write_bytes(hea.encode() if isinstance(hea, str) else hea)
    if dat is not None: (folder / f"{name}.dat").write_bytes(dat)
    return folder / name


CASES = {
    "no_header": (lambda h, d: (None, d), "r.hea does not exist"),
    "no_data": (lambda h, d: (h, None), "r.dat does not exist"),
    "truncated": (lambda h, d: (h, d[:-1]), "r.dat is truncated"),
    "empty_data": (lambda h, d: (h, b""), "r.dat is truncated"),
    "wrong_checksum": (lambda h, d: (h, d[:500] + bytes([d[500] ^ 1]) + d[501:]), "r.dat is damaged: the checksum of"),
    "binary_header": (lambda h, d: (bytes(range(256)) * 4, d), "r.hea is not a readable WFDB header"),
    "empty_header": (lambda h, d: ("", d), "r.hea is not a readable WFDB header"),
    "header_cut_off": (lambda h, d: (h[: len(h) // 2], d), "r.hea"),
    "huge_header": (lambda h, d: (h + "#" * 2_000_000, d), "larger than 1 MB"),
    "no_signal": (lambda h, d: ("r 0 500 3000\n", d), "r.hea names no signal"),
    "four_seconds": (lambda h, d: (h.replace("r 12 500", "r 12 700"), d), "at least 5 s"),
    "absurd_length": (lambda h, d: (h.replace("500 3000", "500 99999999999"), d), "more than the"),
    "absurd_channels": (lambda h, d: (h.replace("r 12 500", "r 99999999 500"), d), "announces 99999999 signals"),
    "absurd_frames": (lambda h, d: (h.replace(" 16 ", " 16x99999999 ", 1), d), "more than the"),
    "absurd_skew": (lambda h, d: (h.replace(" 16 ", " 16:999999999 ", 1), d), "more than the"),
    "unknown_format": (lambda h, d: (h.replace(".dat 16", ".dat 99"), d), "cannot be read"),
    "not_millivolts": (lambda h, d: (h.replace("/mV", "/mmHg", 1), d), "which is not a voltage"),
    "all_missing": (
        lambda h, d: (
            "\n".join(
                [h.splitlines()[0]]
                + [" ".join(line.split()[:5] + ["0", "0", "0", line.split()[-1]]) for line in h.splitlines()[1:]]
            ).replace(" 0 0 0 ", " 0 -32768 0 0 "),
            np.full(36000, -32768, "<i2").tobytes(),
        ),
        "no valid sample",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_record_ends_in_one_sentence(good, tmp_path, case):
    spoil, words = CASES[case]
    hea, dat = spoil(*good)
    path = put(tmp_path, hea if hea is not None else "", dat)
    if hea is None: (tmp_path / "r.hea").unlink()
    tracemalloc.start()
    with pytest.raises(PeaceError, match=words) as e: read_record(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(e.value) and "r" in str(e.value) and peak < 20e6, (str(e.value), peak)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 700), noise=st.binary(min_size=1, max_size=12), cut=st.booleans())
@example(at=0, noise=b"r/2 12 500 3000\nr 1500\n", cut=True)
def test_any_damage_to_a_header_is_a_sentence_or_a_reading(good, tmp_path, at, noise, cut):
    hea, dat = good[0].encode(), good[1]
    path = put(tmp_path, hea[:at] + noise + (b"" if cut else hea[at + len(noise):]), dat)
    try: signal, names, fs = read_record(path)
    except PeaceError as e:
        assert "\n" not in str(e)
        return
    assert signal.shape[0] == len(names) and fs > 0
    try: assert np.isfinite(prepare_flagged(signal, names, fs)[0]).all()
    except PeaceError: pass


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 71_000), bits=st.integers(1, 255))
def test_a_changed_byte_is_always_noticed(good, tmp_path, at, bits):
    "One byte changes a checksum by less than 2**16, so it cannot go unnoticed."
    dat = bytearray(good[1])
    dat[at] ^= bits
    with pytest.raises(PeaceError, match="damaged"): read_record(put(tmp_path, good[0], bytes(dat)))


def blank(path: Path, channel: int):
    "Make every sample of a channel the format's *no sample here*, checksum included (wfdb refuses to write such a lead)."
    lines = path.with_suffix(".hea").read_text().splitlines()
    d = np.fromfile(path.with_suffix(".dat"), "<i2").reshape(-1, int(lines[0].split()[1]))
    d[:, channel] = -32768
    fields = lines[1 + channel].split()
    fields[6] = str(int(d[:, channel].sum(dtype=np.int64)) % 65536)
    lines[1 + channel] = " ".join(fields)
    path.with_suffix(".hea").write_text("\n".join(lines) + "\n")
    d.tofile(path.with_suffix(".dat"))


def test_a_lead_without_a_sample_is_masked_and_listed(good, tmp_path):
    blank(put(tmp_path, *good), 8)
    x, mask, flags = prepare_flagged(*read_record(tmp_path / "r"))
    assert not mask[8] and mask.sum() == 11 and flags["empty"] == ["V3"] and not x[8].any()


def test_a_cohort_goes_on_without_its_bad_records(tmp_path):
    write_simulated_cohort("zzu-pecg", tmp_path / "z", 40, seed=3, damaged=0.)
    cohort = load_cohort("zzu-pecg", tmp_path / "z")
    ids, file = cohort.table.index, lambda i, e: cohort.root / f"{cohort.table.path.iloc[i]}{e}"
    file(0, ".dat").unlink()
    file(1, ".hea").unlink()
    file(2, ".dat").write_bytes(file(2, ".dat").read_bytes()[:999])
    file(3, ".hea").write_bytes(b"\xff\xfe noise")
    raw = bytearray(file(4, ".dat").read_bytes())
    raw[100] ^= 8
    file(4, ".dat").write_bytes(bytes(raw))
    lines = file(5, ".hea").read_text().split("\n")
    first = lines[0].split()
    first[2] = "5000"
    lines[0] = " ".join(first)
    file(5, ".hea").write_text("\n".join(lines))
    blank(file(6, ""), 1)
    store = build_store(load_cohort("zzu-pecg", tmp_path / "z"), SignalSpec(fs=100), tmp_path / "s", progress=False)
    aside = store.set_aside.set_index("record_id").reason
    assert sorted(aside.index) == sorted(ids[:6]) and store.meta["set_aside"] == 6 and len(store) == len(cohort) - 6
    for i, words in enumerate(
        [
            "dat does not exist", "hea does not exist", "is truncated", "not a readable WFDB header", "checksum",
            "at least 5 s"
        ]
    ):
        assert words in aside[ids[i]] and ids[i] in aside[ids[i]] and str(tmp_path) not in aside[ids[i]], aside[ids[i]]
    assert "empty:II" in store.table.quality[ids[6]] and not store.mask[store.table.index.get_loc(ids[6]), 1]
    report = pd.read_csv(store.path / "set_aside.csv")
    assert report.columns.tolist() == ["record_id", "kind", "reason"] and len(report) == 6
