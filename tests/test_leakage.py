"The leakage audit on real records, on copies in disguise, and on what must be refused."
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from peace_nb.cohorts.load import load_cohort
from peace_nb.store.leakage import audit, copies
from peace_nb.signals.prepare import LEADS, SignalSpec
from peace_nb.store.build import build_store
from peace_nb.store.store import SignalStore
from peace_nb.settings import PeaceError

SPEC = SignalSpec(fs=100)


def beats(n, seed):
    "Records of random beats at random times: strangers to each other. (n, 12, 1000) mV."
    rng, t = np.random.default_rng(seed), np.arange(1000) / 100
    x = np.zeros((n, 12, 1000), np.float32)
    for i in range(n):
        at = np.cumsum(rng.normal(rng.uniform(.5, 1.1), .03, 25))
        for lead in range(12):
            x[i, lead] = sum(
                rng.uniform(0.3, 1.5) * np.exp(-(((t - a) / 0.03) ** 2))
                + rng.uniform(0.1, 0.3) * np.exp(-(((t - a - 0.25) / 0.06) ** 2))
                for a in at
            )
    return x


def put(path, x, start=0, labels=None, leads=np.ones(12, bool)):
    ids = pd.Index([f"r{i + start}" for i in range(len(x))])
    table = pd.DataFrame({"patient_id": [f"p{i // 2 + start}" for i in range(len(x))], "age_days": 1000.}, index=ids)
    mask = np.tile(leads, (len(x), 1))
    labels = pd.DataFrame({"NORM": np.arange(len(x)) % 2. if labels is None else labels}, index=ids)
    return SignalStore.create(path, SPEC, [(x * mask[..., None], mask, table, labels)])


@pytest.fixture(scope="module")
def signals(): return beats(60, 0)


def found(store, other=None):
    c = copies(store, other)
    return set(zip(c.record, c.twin))


def test_copies_in_disguise_are_found_and_strangers_are_not(signals, tmp_path):
    rng = np.random.default_rng(1)
    a = put(tmp_path / "a", signals[:40])
    nine = np.array([lead not in ("V2", "V4", "V6") for lead in LEADS])
    disguised = (
        signals[20:] * rng.uniform(0.5, 2, (40, 12, 1))
        + rng.normal(0, 0.01, (40, 12, 1000))
        + 0.2 * np.sin(np.arange(1000) / 100)
    )
    b = put(tmp_path / "b", disguised.astype(np.float32), start=100, leads=nine)
    assert found(a, b) == {(f"r{20 + i}", f"r{100 + i}") for i in range(20)} and not found(a) and not found(b)


def test_exact_copies_and_many_of_them(signals, tmp_path):
    "A recording listed fifty times is linked, and told as exact."
    x = np.concatenate([signals[:10], np.repeat(signals[:1], 50, 0)])
    c = copies(put(tmp_path / "a", x))
    assert (
        c.exact.sum() == 50
        and set(c.twin[c.exact]) == {f"r{10 + i}" for i in range(50)}
        and set(c.record[c.exact]) == {"r0"}
    )


def test_every_leak_is_named(signals, tmp_path):
    x = np.concatenate([signals[:30], signals[:1] * 1.1])
    store = put(tmp_path / "a", x, labels=(np.arange(31) > 15).astype(float))
    split = pd.Series(["train"] * 15 + ["test"] * 16, store.table.index)
    v = audit(store, split).set_index("check")
    assert (
        v.verdict["patients across parts"] == "leak"
        and v["count"]["patients across parts"] == 1
        and "p7" == v.examples["patients across parts"]
    )
    assert v.verdict["copies across parts"] == "leak" and v.examples["copies across parts"] == "r0 = r30"
    assert (
        v.verdict["copies under two patients"] == "look"
        and v.verdict["labels from order"] == "look"
        and v.verdict["entries of a batch"] == "ok"
    )
    assert v.verdict["statistics from train alone"] == "not checked"


def test_a_split_must_place_every_record(signals, tmp_path):
    store = put(tmp_path / "a", signals[:4])
    with pytest.raises(PeaceError, match="does not say where record r3 belongs"):
        audit(store, pd.Series("train", store.table.index[:3]))


def test_flat_and_absent_leads_agree_with_nothing(tmp_path):
    "Records without any telling lead are nobody's copy unless their samples are the same."
    x = np.random.default_rng(0).normal(0, .3, (6, 12, 1000)).astype(np.float32)
    only = np.array([lead == "V6" for lead in LEADS])
    assert not found(put(tmp_path / "a", x, leads=only))


@pytest.mark.skipif(
    not os.environ.get("PEACE_SAMPLE_DATA"), reason="PEACE_SAMPLE_DATA is not set: no real records to read"
)
def test_real_records_are_found_at_their_other_rate(tmp_path):
    real = load_cohort("ptb-xl", Path(os.environ["PEACE_SAMPLE_DATA"]) / "ptb-xl-sample")
    real = real.part(real.table.index[:80])
    low = real.part(real.table.index)
    low.table = low.table.assign(
        path=low.table.path.str.replace("records500", "records100").str.replace("_hr", "_lr"), fs=100.0
    )
    high, low = (build_store(c, SPEC, tmp_path / n, progress=False) for c, n in ((real, "high"), (low, "low")))
    pairs = found(high, low)
    assert sum(a == b for a, b in pairs) >= 78 and all(a == b for a, b in pairs)
