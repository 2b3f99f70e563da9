"The age on the ECG side and on the text side: what neither may do to plain PEACE."
import numpy as np
import pytest
import torch

from peace_nb.ages.bands import POPULATIONS
from peace_nb.signals.prepare import Normaliser, SignalSpec
from peace_nb.methods.age_aware import AGE_LABELS, AGE_METHODS, AgeFiLM, band_of
from peace_nb.methods.registry import build_method, method_texts, registered
from peace_nb.settings import PeaceError
from peace_nb.training.checkpoint import load_model, save_model

L = ("NORM", "STACH", "RVH")
G = len(POPULATIONS)


def embeddings(seed=0):
    "Random unit vectors in place of a text model's, the adult's first"
    e = torch.randn(len(L), 3 * G, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(e, dim=-1)


def build(name, seed=0, **cfg):
    e = embeddings()
    return build_method(name, L, encoder="tiny", seed=seed, embeddings=e if "bands" in name else e[:, :3], **cfg)


def batch(n=24, ages=None):
    g = torch.Generator().manual_seed(3)
    y = (torch.rand(n, len(L), generator=g) < .4).float()
    y[0, 1] = torch.nan
    return dict(
        signals=torch.randn(n, 12, 200, generator=g), mask=torch.ones(n, 12), labels=y,
        age_years=torch.full((n,), 50.0) if ages is None else ages
    )


def values(terms): return {k: float(v.detach()) for k, v in terms.items()}


def woken(name):
    "A method whose FiLM has learned something between 1 and 60 years"
    m = build(name).eval()
    if m.film is not None:
        torch.nn.init.normal_(m.film.weight, std=.2)
        m.film.remember(torch.tensor([1.0, 60.0]))
    return m


@pytest.mark.parametrize("name", AGE_METHODS)
@pytest.mark.parametrize("cfg", [{}, {"negatives": True}, {"axes": "fused"}, {"text": False}])
def test_starts_as_peace_on_adults(name, cfg):
    b = batch()
    assert values(build(name, **cfg)(b, .7)) == values(build("PEACE", **cfg)(b, .7))


def test_bands_stay_peace_on_adults_through_training():
    "Not only at the start: after updates, too, weight for weight"
    two = {name: build(name).train() for name in ("PEACE", "PEACE-bands")}
    for m in two.values():
        opt = torch.optim.SGD(m.parameters(), .05)
        for step in range(3):
            m(batch(), step / 3)["total"].backward()
            opt.step()
            opt.zero_grad()
    ours = two["PEACE-bands"].state_dict()
    assert all(torch.equal(v, ours[k]) for k, v in two["PEACE"].state_dict().items())


def test_children_are_described_in_the_words_of_their_band():
    kids = batch(ages=torch.full((24,), 2.0))
    m = build("PEACE-bands")
    before = values(m(kids, .7))
    m.knowledge.compose.bands[:, int(band_of(torch.tensor([2.0]))[0])] += 1
    after = values(m(kids, .7))
    assert before["txt"] != after["txt"] and before["ecg"] == after["ecg"]
    ours, plain = values(m(batch(), .7)), values(build("PEACE")(batch(), .7))
    assert (ours["txt"], ours["lsbc"]) == (plain["txt"], plain["lsbc"])       # adults have not noticed


@pytest.mark.parametrize("name", AGE_METHODS)
def test_predictions_ignore_the_text_side_and_labels_restrict(name):
    m, b = woken(name), batch(ages=torch.linspace(0, 80, 24))
    read = m.predict(b["signals"], b["mask"], b["age_years"])
    cut = m.restrict(("RVH", "NORM"))
    assert torch.allclose(cut.predict(b["signals"], b["mask"], b["age_years"]), read[:, [2, 0]], atol=1e-5)
    assert np.isfinite(values(cut({**b, "labels": b["labels"][:, [2, 0]]}, .5))["total"])
    for p in m.knowledge.parameters(): torch.nn.init.normal_(p)
    assert torch.equal(m.predict(b["signals"], b["mask"], b["age_years"]), read)


def test_unknown_and_unseen_ages_are_the_blind_path():
    m, b = woken("PEACE-age"), batch(4)
    ages = torch.tensor([torch.nan, .9, 61.0, 30.0])
    read, blind = m.predict(b["signals"], b["mask"], ages), m.predict(b["signals"], b["mask"])
    assert torch.equal(read[:3], blind[:3]) and not torch.equal(read[3], blind[3])


def test_the_range_is_learned_in_training_only_and_saved(tmp_path):
    m = build("PEACE-age-bands")
    m.eval()(batch(), .1)
    assert torch.isinf(m.film.seen).all()
    m.train()(batch(ages=torch.tensor([torch.nan] * 22 + [.5, 70.0])), .1)
    assert m.film.seen.tolist() == [.5, 70.0]
    torch.nn.init.normal_(m.film.weight, std=.2)
    save_model(tmp_path / "m", m.eval(), SignalSpec(fs=100, seconds=2), Normaliser(np.zeros(12), np.ones(12)))
    again, b = load_model(tmp_path / "m").method, batch(ages=torch.linspace(0, 80, 24))
    assert torch.equal(again.film.seen, m.film.seen) and torch.equal(
        again.knowledge.compose.bands, m.knowledge.compose.bands
    )
    assert torch.equal(
        again.predict(b["signals"], b["mask"], b["age_years"]), m.predict(b["signals"], b["mask"], b["age_years"])
    )


def test_ages_are_forgotten_in_training_only():
    m = woken("PEACE-age")
    b = batch(ages=torch.full((24,), 30.0))
    assert values(m(b, .5)) == values(m(b, .5))                               # evaluation: nothing random
    m.train()
    m.film.dropout = 1.0
    torch.testing.assert_close(m(b, .5)["ecg"], build("PEACE").train()(b, .5)["ecg"])


def test_wrong_settings_are_named():
    with pytest.raises(PeaceError, match="age_dropout"): build("PEACE-age", age_dropout=1.5)
    with pytest.raises(PeaceError, match="populations"):
        build_method("PEACE-bands", L, encoder="tiny", embeddings=embeddings()[:, :5])
    with pytest.raises(PeaceError, match="descriptor embeddings"): build_method("PEACE-age", L, encoder="tiny")
    assert AgeFiLM(4, 0.0).dropout == 0


def test_registrations():
    assert [registered(n).reads_age for n in ("PEACE", *AGE_METHODS)] == [False, True, False, True]
    assert {len(row) for row in method_texts("PEACE-bands", AGE_LABELS)} == {3 * G}
    assert {len(row) for row in method_texts("PEACE-age", AGE_LABELS)} == {3}
