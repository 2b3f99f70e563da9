"Properties of the signal path that hold for any input, and a check against real records."
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from peace_nb.signals.prepare import LEADS, SignalSpec, bandpass, fill_gaps, prepare, prepare_flagged, select_leads
from peace_nb.settings import PeaceError

SAMPLE = os.environ.get("PEACE_SAMPLE_DATA")
real = pytest.mark.skipif(not SAMPLE, reason="PEACE_SAMPLE_DATA is not set: no real records to read")


def ecg(fs=500, seconds=10, seed=0):
    "Twelve different, band-limited leads, (12, T) mV."
    rng = np.random.default_rng(seed)
    t = np.arange(int(fs * seconds)) / fs
    waves = [
        np.sin(2 * np.pi * f * t[None] + rng.uniform(0, 6, (12, 1))) * rng.normal(0, 0.3, (12, 1))
        for f in (1.2, 2.4, 5, 9, 17)
    ]
    return sum(waves)


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(12)), st.integers(1, 12), st.sampled_from([str.upper, str.lower, lambda s: f"Lead {s}"]))
def test_leads_are_chosen_by_name_whatever_their_order(order, kept, spell):
    x = np.arange(12.)[:, None] * np.ones((1, 4))
    chosen = order[:kept]
    out, mask = select_leads(x[chosen], [spell(LEADS[i]) for i in chosen])
    assert [i for i in range(12) if mask[i]] == sorted(chosen)
    assert np.array_equal(out, np.where(mask[:, None], x, 0))


@settings(deadline=None, max_examples=25)
@given(
    fs=st.sampled_from([100, 128, 250, 257, 360, 500, 977, 1000]), seconds=st.floats(5, 14),
    out=st.sampled_from([100, 250, 500]),
    gaps=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 400), st.integers(1, 300)), max_size=5),
    seed=st.integers(0, 10)
)
def test_prepare_always_gives_finite_leads_of_the_right_length(fs, seconds, out, gaps, seed):
    x = ecg(fs, seconds, seed)
    for lead, at, length in gaps: x[lead, at:at + length] = np.nan
    spec = SignalSpec(fs=out)
    y, mask, flags = prepare_flagged(x, LEADS, fs, spec)
    assert y.shape == (12, spec.n) and y.dtype == np.float32 and np.isfinite(y).all() and not y[~mask].any()
    assert set(flags.get("empty", [])) == {lead for lead, m in zip(LEADS, mask) if not m}


def test_the_same_heart_at_any_rate_gives_the_same_array():
    at = {fs: prepare(ecg(fs), LEADS, fs, SignalSpec(fs=100))[0][:, 100:-100] for fs in (250, 500, 1000)}
    assert all(np.abs(x - at[500]).max() < 0.01 for x in at.values())


def test_amplitude_survives():
    x = ecg()
    assert np.allclose(prepare(3 * x, LEADS, 500)[0], 3 * prepare(x, LEADS, 500)[0], atol=1e-4)


def test_a_railed_lead_is_kept_and_flagged_and_its_record_with_it():
    x = ecg()
    x[4, 2000:2300] = -26.6
    y, mask, flags = prepare_flagged(x, LEADS, 500)
    assert mask.all() and flags == {"rail": ["aVL"]} and np.abs(y[4]).max() > 10


@pytest.mark.parametrize(
    "signal, names, fs, words",
    [
        (ecg(seconds=4.9), LEADS, 500, "lasts 4.90 s"),
        (np.full((12, 5000), np.nan), LEADS, 500, "no lead can be used"),
        (np.zeros((12, 5000)), LEADS, 500, "no lead can be used"),
        (ecg()[:2], ["CS 1-2", "HIS"], 500, "none of the leads"), (ecg()[:2], ["II", "ii"], 500, "more than once"),
        (ecg(), LEADS[:11], 500, "11 lead names"), (ecg(), LEADS, 0, "sampling rate"),
        (ecg(), LEADS, float("nan"), "sampling rate"), (ecg(), LEADS, 10, "sampling rate")
    ],
)
def test_bad_signals_end_in_one_sentence(signal, names, fs, words):
    with pytest.raises(PeaceError, match=words): prepare(signal, names, fs)


def test_a_gap_leaves_no_step():
    x = ecg()
    truth = bandpass(x, 500)
    x[1, 2500:2510] = np.nan
    moved = np.abs(bandpass(fill_gaps(x)[0], 500) - truth)[1]
    assert moved.max() < 0.2 * np.abs(truth[1]).max() and np.delete(moved, slice(2400, 2610)).max() < 0.01


@real
def test_both_rates_of_ptbxl_agree():
    "The 100 Hz files were made from the 500 Hz files by the data set's authors: an independent resampler."
    from peace_nb.cohorts.load import load_cohort
    from peace_nb.cohorts.records import read_record
    cohort = load_cohort("ptb-xl", Path(SAMPLE) / "ptb-xl-sample")
    spec, close = SignalSpec(fs=100, band=(0.5, 30)), []
    for path in cohort.table.path.iloc[:25]:
        high, _ = prepare(*read_record(cohort.root / path), spec)
        low, _ = prepare(
            *read_record(cohort.root / path.replace("records500", "records100").replace("_hr", "_lr")), spec
        )
        close.append(np.corrcoef(high[:, 100:-100].ravel(), low[:, 100:-100].ravel())[0, 1])
    assert min(close) > 0.98 and np.median(close) > 0.99, close
