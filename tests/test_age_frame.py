"The adult's frame: beats and pauses, at any sampling rate, with too few beats, with missing leads."
from dataclasses import replace

import numpy as np
import pytest

from peace_nb.ages.frame import FRAME, AgeFrame, FramedStore, pace_beats, r_peaks, stretch, time_factor, time_map
from peace_nb.signals.prepare import SignalSpec
from peace_nb.simulation.simulator import simulate, simulate_blocks
from peace_nb.store.store import SignalStore
from peace_nb.store.batches import StoreDataset, fit_normaliser
from peace_nb.settings import PeaceError

INFANT = simulate(1, population="child", seed=11, fs=500, age_days=60, labels=("NORM",)).signals


@pytest.mark.parametrize("step", [1, 2, 5])
def test_beats_move_apart_by_alpha(step):
    fs, x = 500 / step, INFANT[..., ::step]
    factor = float(time_factor(np.array([60 / 365.25]), .75)[0])
    before = np.median(np.diff(r_peaks(x[0], fs)))
    after = np.median(np.diff(r_peaks(pace_beats(x, np.array([factor]), np.array([factor ** .67]), fs)[0], fs)))
    assert after / before == pytest.approx(factor, rel=.03)


def test_time_never_runs_backwards():
    rng = np.random.default_rng(0)
    for _ in range(50):
        peaks = np.cumsum(rng.integers(17, 160, 12))
        pace = rng.uniform(1, 2)
        assert (np.diff(time_map(peaks, 1000, pace, rng.uniform(1, pace), 100)) > 0).all()


def test_no_beats_means_one_factor():
    flat = np.zeros((1, 12, 1000), np.float32)
    flat[..., 500] = 1
    assert np.array_equal(pace_beats(flat, np.array([1.5]), np.array([1.2]), 100), stretch(flat, np.array([1.5])))


def test_absent_leads_and_unknown_ages_stay():
    x = INFANT[..., ::5].copy()
    x[0, [7, 9, 11]] = 0
    mask = np.ones((1, 12), bool)
    mask[0, [7, 9, 11]] = False
    assert (FRAME(x, mask, np.array([.16]))[0, [7, 9, 11]] == 0).all()
    assert np.array_equal(FRAME(x, mask, np.array([np.nan])), x)


def test_a_strength_out_of_range_is_named():
    with pytest.raises(PeaceError, match="beat"): AgeFrame(.5, beat=1.5)


def test_p_and_pr_stretch_as_the_beat_does():
    "A P wave that lies in the pause would be smeared over it, and a healthy infant would get a first-degree block."
    s, grown = simulate(60, population="child", seed=5, fs=100, age_days=45, labels=("NORM",)), []
    pace, beat = (float(time_factor(np.array([45 / 365.25]), a)[0]) for a in (FRAME.alpha, FRAME.beat))
    for i in range(len(s)):
        w = s.windows(i)
        at, t = time_map(r_peaks(s.signals[i], 100), 1000, pace, beat, 100), np.arange(1000)
        def new(seconds): return np.interp(100 * seconds, at, t) / 100  # noqa: B023
        qrs = w.loc[(w.wave == "QRS") & w.start.between(3, 7), "start"].to_numpy()
        for p in w.loc[(w.wave == "P") & w.start.between(3, 7), "start"]:
            q = qrs[(qrs > p) & (qrs < p + .25)]
            if len(q): grown.append((new(q[0]) - new(p)) / (q[0] - p))
    assert len(grown) > 200 and np.median(grown) == pytest.approx(beat, rel=.02)
    assert np.mean(np.array(grown) > 1.1 * beat) < .15


def test_a_fast_regular_heart_stays_regular():
    "290 beats a minute: one wave a beat, thirty in a row."
    fs, t = 250, np.arange(2500) / 250
    beat = np.exp(-((t * 290 / 60 + .5) % 1 - .5) ** 2 / .002)
    x = np.tile(beat, (12, 1)).astype(np.float32)[None]
    y = replace(FRAME, fs=fs)(x, np.ones((1, 12), bool), np.array([60 / 365.25]))[0]
    rr = np.diff(r_peaks(y, fs)) / fs
    assert len(rr) > 20 and rr.std() / rr.mean() < .05


def test_a_framed_store_hides_the_age(tmp_path):
    "Whoever reads the age would correct a second time."
    spec = SignalSpec(fs=100)
    store = SignalStore.create(tmp_path / "s", spec, simulate_blocks(8, spec, population="child", seed=1), total=8)
    def ages(st):
        return np.array(
            [
                float(StoreDataset(st, np.arange(8), fit_normaliser(store, np.arange(8)))[i]["age_years"])
                for i in range(8)
            ]
        )
    assert np.isfinite(ages(store)).all() and np.isnan(ages(FramedStore(store, FRAME))).all()
