"""Rules: what a notebook cell cannot hold — bad input, checkpoints, the age that only rules are told, and a store end to end"""
import json

import numpy as np
import pandas as pd
import pytest
import torch

from peace_nb.labels.space import LABELS, PAPER9
from peace_nb.signals.prepare import Normaliser, SignalSpec, bandpass
from peace_nb.simulation.simulator import simulate, simulate_blocks
from peace_nb.store.store import SignalStore
from peace_nb.methods.measurements import MEASURES, measure
from peace_nb.methods.registry import build_method, registered
from peace_nb.methods.rules import CRITERIA, calibration, distances, label_scores, rule_scores
from peace_nb.settings import PeaceError
from peace_nb.training.checkpoint import Model, load_model, predict_signals, predict_store, save_model

SPEC = SignalSpec(fs=100, seconds=10)


def scale(std): return Normaliser(np.full(12, .003), np.full(12, std))
def rules(std=.2, **cfg): return build_method("Rules", LABELS, "tiny", **calibration(SPEC, scale(std)), **cfg)


@pytest.fixture(scope="module")
def children(): return simulate(30, population="child", seed=911, fs=100)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("rules") / "child"
    return SignalStore.create(
        path, SPEC, simulate_blocks(30, SPEC, population="child", seed=911), total=30, source="simulated"
    )


def test_millivolts_come_back_whatever_the_scale(children):
    "The same record under two normalisers scores the same; with the wrong scale its voltages are wrong."
    x, age = bandpass(children.signals, 100), children.table["age_days"] / 365.25
    a, b = (predict_signals(Model(rules(std), SPEC, scale(std), LABELS), x, age_years=age) for std in (.2, 3.1))
    assert np.allclose(a, b, atol=2e-3)
    wrong = predict_signals(Model(rules(3.1), SPEC, scale(.2), LABELS), x, age_years=age)
    assert np.abs(wrong - a)[:, LABELS.index("LVHV")].max() > .5


def test_a_store_hands_over_its_ages(store):
    method = rules()
    found = (
        predict_store(Model(method, SPEC, scale(0.2), LABELS), store)
        .pivot(index="record_id", columns="label", values="score")
        .loc[store.table.index, list(LABELS)]
    )
    x, mask = store.batch(np.arange(len(store)))
    told = predict_signals(Model(method, SPEC, scale(.2), LABELS), x, mask, age_years=store.table["age_days"] / 365.25)
    untold = predict_signals(Model(method, SPEC, scale(.2), LABELS), x, mask)
    assert np.allclose(found, told, atol=1e-6) and np.abs(told - untold)[:, LABELS.index("STACH")].max() > .2


def test_a_checkpoint_brings_the_calibration_back(children, tmp_path):
    method = rules(.17).restrict(PAPER9)
    x = torch.tensor(scale(.17).apply(bandpass(children.signals[:4], 100)))
    save_model(tmp_path, method, SPEC, scale(.17))
    model = load_model(tmp_path, labels=PAPER9)
    assert torch.equal(model.method.predict(x), method.predict(x)) and json.loads(
        (tmp_path / "model.json").read_text()
    )["config"]["mv"] == pytest.approx(0.17)
    assert not model.method.trained and model.method.reads_age and registered("Rules").trained is False


def test_a_batch_is_scored_record_by_record(children):
    "Neither the other records nor their order change a score."
    x, age = (
        torch.tensor(scale(0.2).apply(bandpass(children.signals[:5], 100))),
        torch.tensor(children.table["age_days"].to_numpy()[:5] / 365.25)
    )
    method, mask = rules(), torch.ones(5, 12)
    together = method.predict(x, mask, age)
    assert torch.equal(together[[3]], method.predict(x[[3]], mask[:1], age[[3]])) and torch.equal(
        together.flip(0), method.predict(x.flip(0), mask, age.flip(0))
    )


@pytest.fixture(scope="module")
def fine(): return simulate(3, seed=4, fs=500)


@pytest.mark.parametrize("fs, seconds", [(100, 5), (128, 10), (250, 10), (360, 5), (500, 5), (500, 10)])
def test_any_rate_and_length(fs, seconds, fine):
    s = fine
    at = np.round(np.arange(seconds * fs) * 500 / fs).astype(int)
    found = measure(bandpass(s.signals, 500, (.5, 40))[..., at], fs=fs)
    assert np.isfinite(found[["rate", "qrs_ms", "qt_ms", "axis_deg"]]).all().all()
    assert np.abs(found["rate"] - s.table["heart_rate"].to_numpy()).median() < 6


@pytest.mark.parametrize(
    "kind", ["flat", "noise", "huge", "nan", "infinite", "one beat", "steps", "alternating", "constant"]
)
def test_nothing_in_a_record_stops_the_run(kind):
    rng, t = np.random.default_rng(3), np.arange(1000)
    x = dict(
        flat=np.zeros((12, 1000)), noise=rng.normal(0, 1, (12, 1000)), huge=rng.normal(0, 1e6, (12, 1000)),
        nan=np.full((12, 1000), np.nan), infinite=np.full((12, 1000), np.inf),
        steps=np.repeat(rng.normal(size=(12, 10)), 100, 1), alternating=np.tile((-1.0) ** t, (12, 1)),
        constant=np.full((12, 1000), 7.0), **{"one beat": np.exp(-((t - 500.0) ** 2) / 20) * np.ones((12, 1))}
    )[kind]
    masks, ages = np.stack([np.ones(12), np.zeros(12), np.arange(12) == 9]), [float("nan"), 0., -1.]
    scores = rules().predict(
        torch.tensor(np.stack([x] * 3), dtype=torch.float32), torch.tensor(masks, dtype=torch.float32),
        torch.tensor(ages)
    )
    assert scores.shape == (3, 27) and scores.isfinite().all()


def test_every_lead_may_be_missing(children):
    x = bandpass(children.signals[:2], 100)
    for lead in range(12):
        mask = np.ones((2, 12), bool)
        mask[:, lead] = False
        a, b = measure(x * mask[..., None], mask), measure(np.where(mask[..., None], x, 1e3), mask)
        pd.testing.assert_frame_equal(a, b)  # what stands in a lead that was not recorded is not read
        assert np.isfinite(rule_scores(a, np.array([5., np.nan]))).all().all()


def test_what_a_user_can_get_wrong():
    x = torch.zeros(1, 12, 1000)
    for wrong, says in (
        (lambda: build_method("Rules", LABELS, "tiny").predict(x), "fs and mv"),
        (lambda: build_method("Rules", LABELS, "tiny", fs=100, mv=-1), "mv is -1"),
        (lambda: build_method("Rules", LABELS, "tiny", threshold=1), "no such setting"),
        (lambda: rules().loss({}, 0.0), "learn nothing"), (lambda: rules()({}, 0.0), "learn nothing"),
        (lambda: rules().restrict(("GOUT",)), "GOUT"), (lambda: measure(np.zeros((1, 3, 1000))), "twelve leads"),
        (lambda: measure(np.zeros((1, 12, 1000)), fs=5), "fs is 5"),
        (lambda: calibration(SignalSpec(leads=("I", "II")), scale(0.2)), "twelve leads")
    ):
        with pytest.raises(PeaceError, match=says): wrong()


def test_every_criterion_moves_its_label():
    "A value far beyond the limit never lowers the label's score, on either side, at any age."
    blank, ages = pd.DataFrame(0.0, range(3), list(MEASURES)), np.array([.1, 6., 40.])
    for row in CRITERIA.itertuples():
        own, far = CRITERIA[CRITERIA["label"] == row.label], 1e4 if row.side == ">" else -1e4
        for_it, against = (
            label_scores(distances(blank.assign(**{row.measure: v}), ages, own), own)[row.label] for v in (far, -far)
        )
        assert (for_it >= against).all(), (row.label, row.measure)
