"""Attribution maps: what they must leave alone, whom they must refuse, and that they hold for every encoder and sampling rate."""
import os
from pathlib import Path

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from peace_nb.labels.space import LABELS
from peace_nb.signals.prepare import SignalSpec
from peace_nb.simulation.simulator import simulate
from peace_nb.evaluation.explain import (
    ATTRIBUTIONS, EVIDENCE, attribution, attributions, beat_waves, draw_attribution, enrichment, marked_waves,
    plot_attribution, simulated_positives, untrained, window_mask, window_shares, window_spans
)
from peace_nb.methods.registry import build_method
from peace_nb.settings import PeaceError

SAMPLES = os.environ.get("PEACE_SAMPLE_DATA")


@pytest.fixture(scope="module")
def net():
    method = build_method(
        "PEACE", LABELS, encoder="tiny", seed=0,
        embeddings=torch.randn(len(LABELS), 3, 16, generator=torch.Generator().manual_seed(0))
    )
    # residual branches start at zero: wake them
    for block in method.encoder.blocks:
        torch.nn.init.normal_(block.branch[-1].weight, std=0.5)
    return method.eval()


@pytest.fixture(scope="module")
def batch():
    x = torch.randn(3, 12, 1000, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 12)
    mask[1, [7, 9, 11]] = 0
    return x, mask


def test_maps_are_shares_and_absent_leads_get_nothing(net, batch):
    for name, m in attributions(net, *batch, "RVH", steps=3).items():
        whole = m.sum((1, 2))
        assert m.shape in ((3, 1, 1000), (3, 12, 1000)) and torch.isfinite(m).all() and (m >= 0).all(), name
        assert all(abs(float(w) - 1) < 1e-4 or float(w) == 0 for w in whole), name
        if m.shape[1] == 12: assert m[1, [7, 9, 11]].sum() == 0 and m[0, 7].sum() > 0, name


def test_signal_in_an_absent_lead_changes_no_map(net, batch):
    x, mask = batch
    other = x.clone()
    other[1, 7] += 5
    for name in ATTRIBUTIONS:
        assert torch.allclose(
            attribution(net, x, mask, "LQT", name, steps=3), attribution(net, other, mask, "LQT", name, steps=3),
            atol=1e-6
        ), name


def test_the_model_is_left_as_it_was(net, batch):
    net.train()
    net.encoder.stem.conv.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    first = attributions(net, *batch, "PVC", steps=3)
    assert (
        net.training
        and not net.encoder.stem.conv.weight.requires_grad
        and net.lqn.queries.requires_grad
        and net.lqn.queries.grad is None
    )
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items()), "running statistics moved"
    with pytest.raises(PeaceError, match="no label"): attribution(net, *batch, "NOSUCH")
    assert net.training and net.lqn.queries.requires_grad
    assert all(torch.equal(v, attributions(net, *batch, "PVC", steps=3)[k]) for k, v in first.items()), "the same again"
    assert not any(m._forward_hooks for m in net.modules()), "a hook was left behind"
    net.encoder.stem.conv.weight.requires_grad_(True)
    net.eval()


def test_refusals(net, batch):
    with pytest.raises(PeaceError, match="no attribution 'saliency'"): attribution(net, *batch, "PVC", "saliency")
    plain = build_method("ECG-only", LABELS, encoder="tiny")
    with pytest.raises(PeaceError, match="no label queries"): attribution(plain, *batch, "PVC", "attention")
    with pytest.raises(PeaceError, match="no window"): window_spans(pd.DataFrame(columns=["wave", "start", "end"]), "U")
    with pytest.raises(PeaceError, match="samples"): plot_attribution(np.zeros((12, 1000)), 100, np.zeros((12, 500)))
    with pytest.raises(PeaceError, match="marked"):
        marked_waves(pd.DataFrame(columns=["lead", "wave", "onset", "offset"]), 500, 5000)


@pytest.mark.parametrize(
    "encoder",
    [
        dict(size="resnet18", width=0.125), dict(size="st-mem-vit-b", width=0.1, depth=1),
        dict(size="wav2vec2-cmsc", width=0.1, depth=1)
    ],
    ids=lambda e: e["size"],
)
def test_other_encoders(encoder, batch):
    method = build_method("PEACE", ("PVC", "LQT"), encoder=encoder, embeddings=torch.randn(2, 3, 16))
    for name in ATTRIBUTIONS: assert attribution(method, *batch, "LQT", name, steps=2).shape[-1] == 1000, name


def test_at_500_hz(net):
    assert attributions(net, torch.randn(1, 12, 5000), None, "AFIB", steps=2)["grad-cam++"].shape == (1, 1, 5000)


def test_two_labels_have_two_maps(net, batch):
    for name in ATTRIBUTIONS:
        a, b = (attribution(net, *batch, label, name, steps=3) for label in ("RVH", "LQT"))
        assert not torch.allclose(a, b, rtol=1e-3, atol=1e-7), name


def test_untrained_keeps_the_texts_and_nothing_else(net):
    other = untrained(net)
    assert torch.equal(other.knowledge.compose.embeddings, net.knowledge.compose.embeddings)
    assert not torch.equal(other.encoder.stem.conv.weight, net.encoder.stem.conv.weight) and not other.training


def test_windows_hold_the_energy_of_the_waves():
    sim = simulate(20, fs=100, seed=3, labels=["NORM"])
    for i in range(20):
        qrs, x = (
            window_mask(beat_waves(sim, i), "QRS", 100, 1000),
            np.abs(np.diff(sim.signals[i], axis=-1, prepend=0)).sum(0)
        )
        assert x[qrs].mean() > 4 * x[~qrs].mean(), i


def test_every_label_has_records_with_its_window():
    spec = SignalSpec(fs=100)
    for j, (label, e) in enumerate(EVIDENCE.items()):
        x, waves = simulated_positives(label, 3, spec, seed=40 + j)
        assert len(x) == 3 and all(window_mask(w, e.window, 100, 1000).any() for w in waves), label


def test_a_map_elsewhere_is_below_chance_and_one_inside_reaches_the_ceiling():
    sim = simulate(1, fs=100, seed=4)
    inside = window_mask(beat_waves(sim, 0), "QRS", 100, 1000)[None]
    at = torch.from_numpy(inside[:, None].astype("float32"))
    assert enrichment(window_shares((1 - at) / (1 - at).sum(), inside), 0)["value"] == 0
    assert np.isclose(enrichment(window_shares(at / at.sum(), inside), 0)["value"], 1 / inside.mean())


def test_plots_with_absent_leads():
    x, maps, mask = (
        np.random.default_rng(0).normal(0, 0.2, (12, 1000)), np.random.default_rng(1).random((12, 1000)),
        np.ones(12, bool)
    )
    mask[[7, 9, 11]] = False
    fig = plot_attribution(x, 100, maps, mask=mask)
    assert len(fig.axes[0].images) == 10
    fig2, ax = plt.subplots()
    draw_attribution(ax, x, 100, {"a": maps, "b": maps[:1]}, mask)
    assert len(ax.images) == 9 + 2
    plt.close("all")


@pytest.mark.skipif(not SAMPLES, reason="PEACE_SAMPLE_DATA is not set")
def test_ludb_marks_become_windows():
    from peace_nb.cohorts.marked import read_marks
    waves, (first, last) = marked_waves(read_marks(Path(SAMPLES) / "ludb" / "data" / "1"), 500.0, 5000)
    width = (waves["end"] - waves["start"]).groupby(waves["wave"]).median()
    assert (
        0 <= first < last <= 10
        and set(waves["wave"]) == {"P", "QRS", "T"}
        and 0.05 < width["QRS"] < 0.2
        and width["T"] > width["QRS"]
    )
    assert len(window_spans(waves, "ST-T")) > 3


@pytest.mark.parametrize("seconds, shown", [(12, {}), (30, {}), (10, {"seconds": 5})])
def test_a_sheet_shows_as_much_of_the_map_as_of_the_trace(seconds, shown):
    x = np.random.default_rng(0).normal(size=(12, 100 * seconds))
    fig = plot_attribution(x, 100, np.full((1, 100 * seconds), 1 / (100 * seconds)), **shown)
    assert len(fig.axes[0].images) == 13
    plt.close(fig)


def test_what_was_not_recorded_is_not_shaded():
    x, mask = np.random.default_rng(0).normal(size=(12, 1000)), np.ones(12, bool)
    mask[[1, 7, 9]] = False
    fig = plot_attribution(x, 100, np.full((1, 1000), .001), mask=mask)
    assert len(fig.axes[0].images) == 10  # nine leads and the strip of another lead
    plt.close(fig)
    fig, ax = plt.subplots()
    draw_attribution(ax, np.where(mask[:, None], x, 0), 100, {"a": np.full((1, 1000), .001)}, mask=mask)
    names = [t.get_text() for t in ax.texts]
    assert names.count("I") == 2 and "II" not in names, "the strip takes a lead that was recorded"
    plt.close(fig)


def test_the_score_that_is_explained_is_the_one_at_that_age(batch):
    texts = torch.randn(len(LABELS), 3, 16, generator=torch.Generator().manual_seed(0))
    net = build_method("PEACE-age", LABELS, encoder="tiny", seed=0, embeddings=texts)
    for p in net.film.parameters(): torch.nn.init.normal_(p, std=.5)
    net.film.seen.copy_(torch.tensor([0., 90.]))
    net.eval()
    young, unknown = (attributions(net, *batch, "STACH", steps=2, age_years=a) for a in (torch.full((3,), .5), None))
    assert all(not torch.allclose(young[m], unknown[m]) for m in ATTRIBUTIONS)
    nobody = attributions(net, *batch, "STACH", steps=2, age_years=torch.full((3,), torch.nan))
    assert all(torch.allclose(nobody[m], unknown[m], atol=1e-6) for m in ATTRIBUTIONS)


def test_what_cannot_be_explained_is_told(net, batch):
    x, mask = batch
    hole = x.clone()
    hole[0, 0, 5] = torch.nan
    with pytest.raises(PeaceError, match="NaN"): attribution(net, hole, mask, "RVH")
    with pytest.raises(PeaceError, match="Rules has no network"):
        attribution(build_method("Rules", LABELS), x, mask, "RVH")
