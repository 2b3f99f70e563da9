"""The measuring instrument: hostile input, missing leads, and cardiologists' marks on real records."""
import os, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb

from peace_nb.simulation import believability as bl, simulator
from peace_nb.signals.prepare import LEADS

SAMPLE = os.environ.get("PEACE_SAMPLE_DATA")
needs_real = pytest.mark.skipif(not SAMPLE, reason="PEACE_SAMPLE_DATA is not set: no real records to measure")


@pytest.fixture(scope="module")
def block(): return simulator.simulate_block(0, seed=1)


@pytest.mark.parametrize(
    "signal",
    [np.zeros((12, 5000)), np.full((12, 5000), np.nan), np.ones((12, 300)), np.tile(np.linspace(0, 1, 5000), (12, 1))]
)
def test_no_heart_no_numbers(signal):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert set(bl.measure(signal)) <= {"rate"}


def test_noise_does_not_raise():
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for scale in (.01, 1, 30): bl.measure(rng.normal(0, scale, (12, 5000)))


def test_missing_leads_are_not_measured(block):
    mask = np.ones(12, bool)
    mask[[7, 9, 11]] = False
    x = block.signals[3].copy()
    x[~mask] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = bl.measure(x, 500, mask)
    measured = {k.split("_")[1] for k in m if "_" in k}
    assert measured == {lead for lead, known in zip(LEADS, mask) if known}


def test_scale_moves_voltage_not_time(block):
    normal = np.flatnonzero(block.labels.NORM == 1)[:4]
    one = bl.measure_all((i, block.signals[i], None) for i in normal)
    two = bl.measure_all((i, 2 * block.signals[i], None) for i in normal)
    assert (
        np.allclose(two.R_V5, 2 * one.R_V5, rtol=0.05)
        and np.allclose(two.qrs, one.qrs, atol=6)
        and np.allclose(two.rate, one.rate)
    )


@needs_real
def test_against_cardiologists():
    stems = [Path(SAMPLE) / "ludb" / "data" / str(k) for k in range(2, 200, 6)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        experts = pd.DataFrame({s.name: bl.expert_intervals(s) for s in stems}).T
    mine = bl.measure_all((s.name, wfdb.rdrecord(str(s)).p_signal.T, None) for s in stems)
    error = (mine[["pr", "qrs", "qt"]] - experts).median()
    assert abs(error.pr) < 8 and abs(error.qrs) < 8 and abs(error.qt) < 20
    assert mine.qt.corr(experts.qt, method="spearman") > .8


@needs_real
def test_real_children_are_measured():
    from peace_nb.cohorts.load import load_cohort
    cohort = load_cohort("zzu-pecg", Path(SAMPLE) / "zzu-pecg-sample")
    m = bl.measure_all((r, *cohort.signal(r)) for r in cohort.table.index)
    assert (
        len(m) == 12 and m.rate.between(40, 200).all() and m.qrs.between(50, 110).all() and m.R_V6.between(0.3, 4).all()
    )
