"The adult's frame: beats and pauses, at any sampling rate, with too few beats, with missing leads."
import numpy as np
import pytest

from peace_nb.data.age_frame import FRAME, AgeFrame, pace_beats, r_peaks, stretch, time_factor, time_map
from peace_nb.data.simulator import simulate
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
        peaks = np.cumsum(rng.integers(22, 160, 12))
        pace = rng.uniform(1, 2)
        assert (np.diff(time_map(peaks, 1000, pace, rng.uniform(1, pace))) > 0).all()


def test_no_beats_means_one_factor():
    flat = np.zeros((1, 12, 1000), np.float32)
    flat[..., 500] = 1
    assert np.array_equal(pace_beats(flat, np.array([1.5]), np.array([1.2]), 100), stretch(flat, np.array([1.5])))


def test_absent_leads_and_unknown_ages_stay():
    x = INFANT[..., ::5].copy()
    x[0, [7, 9, 11]] = 0
    mask = np.ones((1, 12), bool); mask[0, [7, 9, 11]] = False
    assert (FRAME(x, mask, np.array([.16]))[0, [7, 9, 11]] == 0).all()
    assert np.array_equal(FRAME(x, mask, np.array([np.nan])), x)


def test_a_strength_out_of_range_is_named():
    with pytest.raises(PeaceError, match="beat"): AgeFrame(.5, beat=1.5)
