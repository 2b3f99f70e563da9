"What the notebooks of MERL, METS and KED cannot hold: no report reaches a score, whatever path it takes; checkpoints, resuming, adaptation."
import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from peace_nb.labels.space import LABELS, PAPER9
from peace_nb.signals.prepare import Normaliser, SignalSpec
from peace_nb.store.store import SignalStore
from peace_nb.store.batches import StoreDataset
from peace_nb.methods.registry import build_method, method_texts, registered
from peace_nb.methods.reports import ReportDataset, Reports, split_report
from peace_nb.settings import PeaceError
from peace_nb.training.checkpoint import load_model, predict_store, save_model
from peace_nb.training.trainer import TrainConfig, adapt, load_weights, train

NAMES, N, K = ("MERL", "MERL-CKEPE", "METS", "KED"), 60, len(LABELS)
PHRASES = (
    "Sinus rhythm", "Atrial fibrillation", "Left bundle branch block", "Normal ECG", "Abnormal ECG",
    "Left axis deviation"
)
QUICK = TrainConfig(epochs=2, batch_size=16, lr=3e-3)


def embeddings(labels=LABELS, dim=384, seed=0):
    return F.normalize(torch.randn(len(labels), 1, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make(name, labels=LABELS, seed=0, **cfg):
    return build_method(name, labels, "tiny", seed=seed, embeddings=embeddings(labels), **cfg)


@pytest.fixture(scope="module")
def written():
    rng = np.random.default_rng(0)
    return pd.Series(
        [" | ".join(rng.choice(PHRASES, 3, replace=False)) for _ in range(N)], index=[f"r{i:02d}" for i in range(N)]
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory, written):
    rng, ids = np.random.default_rng(1), list(written.index)
    spec = SignalSpec(fs=100, seconds=3)
    table = pd.DataFrame({"patient_id": ids, "report": written, "age_days": 20000.0}, index=ids)
    labels = pd.DataFrame((rng.random((N, K)) < 0.3).astype("float32"), index=ids, columns=list(LABELS))
    signals = rng.normal(0, 0.2, (N, 12, spec.n)).astype("float32")
    return SignalStore.create(
        tmp_path_factory.mktemp("b1") / "adults", spec, [(signals, np.ones((N, 12), bool), table, labels)],
        source="test"
    )


@pytest.fixture(scope="module")
def reports(store, tmp_path_factory):
    return Reports.build(store.table["report"].iloc[:40], cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def normaliser(store):
    return Normaliser.fit([store.batch(np.arange(40))])


def data(store, reports, normaliser):
    plain = StoreDataset(store, np.arange(40), normaliser)
    return ReportDataset(plain, reports), StoreDataset(store, np.arange(40, 50), normaliser)


# No report reaches a score

@pytest.mark.parametrize("name", NAMES)
def test_validation_and_prediction_never_see_a_report(name, store, reports, normaliser, tmp_path, monkeypatch):
    method, (training, validation) = make(name), data(store, reports, normaliser)
    read, given = [], []
    extras = Reports.extras
    monkeypatch.setattr(
        Reports, "extras", lambda self, rows, *a: read.append(set(rows.tolist())) or extras(self, rows, *a)
    )
    predict = type(method).predict
    monkeypatch.setattr(
        type(method), "predict", lambda self, *a, **k: given.append((len(a), *sorted(k))) or predict(self, *a, **k)
    )
    train(method, training, validation, QUICK, tmp_path, progress=False)
    assert set().union(*read) == set(range(40)), "reports of other records than the training ones were looked up"
    assert given and set(given) == {(2,)}, "predict was given more than signals and mask"


def test_a_record_outside_the_training_set_brings_no_report(store, reports):
    batch = ReportDataset(StoreDataset(store), reports).__getitems__([45, 3, 59])
    assert batch["report_known"].tolist() == [False, True, False]
    for key in ("report", "sentences", "tokens"):
        assert batch[key][[0, 2]].abs().sum() == 0 and batch[key][1].abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_another_report_changes_the_loss_and_never_the_score(name, store, reports, normaliser):
    method, (training, _) = make(name).eval(), data(store, reports, normaliser)
    batch = training.__getitems__(list(range(12)))
    other = dict(batch, report=batch["report"].flip(0))
    with torch.no_grad():
        before = method.predict(batch["signals"], batch["mask"])
        losses = [float(method.loss(b, 0.5)["total"]) for b in (batch, other)]
        assert losses[0] != losses[1]
        assert torch.equal(method.predict(other["signals"], other["mask"]), before)


@pytest.mark.parametrize("name", NAMES)
def test_training_data_without_reports_are_refused(name, store, normaliser, tmp_path):
    plain = StoreDataset(store, np.arange(40), normaliser)
    with pytest.raises(PeaceError, match=f"{name} learns from reports"):
        train(make(name), plain, plain, QUICK, tmp_path, progress=False)


def test_a_vocabulary_holds_no_word_of_a_record_that_was_not_given(store, tmp_path):
    given = store.table["report"].iloc[:40].copy()
    later = pd.Series(["Secretword Secretword rhythm"] * 3, index=["x", "y", "z"])
    assert "secretword" not in Reports.build(given).vocabulary
    assert "secretword" in Reports.build(pd.concat([given, later])).vocabulary
    kept = Reports.build(later, vocabulary=Reports.build(given).vocabulary)
    assert (kept.tokens[:3, 1:3] == 1).all()  # unknown


# Training, resuming, saving

@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_training_ends_bitwise_like_a_straight_one(name, store, reports, normaliser, tmp_path):
    straight, resumed = make(name), make(name)
    train(straight, *data(store, reports, normaliser), QUICK, tmp_path / "a", progress=False)
    train(make(name), *data(store, reports, normaliser), QUICK, tmp_path / "b", progress=False, stop_after=2)
    result = train(resumed, *data(store, reports, normaliser), QUICK, tmp_path / "b", progress=False)
    assert result.resumed_from == 2 and not result.never_trained
    assert all(torch.equal(v, straight.state_dict()[k]) for k, v in resumed.state_dict().items())


def test_other_reports_are_another_run(store, reports, normaliser, tmp_path, capsys):
    shuffled = pd.Series(store.table["report"].iloc[:40].to_numpy()[::-1], index=store.table.index[:40])
    train(make("METS"), *data(store, reports, normaliser), QUICK, tmp_path, progress=False, stop_after=2)
    result = train(make("METS"), *data(store, Reports.build(shuffled), normaliser), QUICK, tmp_path, progress=False)
    assert result.resumed_from == 0 and "belongs to another run" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_pretrain_save_load_adapt(name, store, reports, normaliser, tmp_path):
    method = make(name)
    train(method, *data(store, reports, normaliser), QUICK, tmp_path / "run", progress=False)
    save_model(tmp_path / "model", method, store.spec, normaliser, {})
    model = load_model(tmp_path / "model", labels=LABELS)
    split = pd.Series(["train"] * 40 + ["val"] * 10 + ["test"] * 10, index=store.table.index)
    zero = adapt(model, store, split, "zero-shot", QUICK, tmp_path / "zero", labels=PAPER9, progress=False)
    # reads no report
    few = adapt(model, store, split, "10-shot", QUICK, tmp_path / "few", labels=PAPER9, progress=False)
    assert few.result.steps > 0 and zero.model.labels == few.model.labels == PAPER9
    save_model(tmp_path / "few-model", few.model.method, store.spec, normaliser, {})
    again = load_model(tmp_path / "few-model", labels=PAPER9)
    pd.testing.assert_frame_equal(predict_store(again, store, np.arange(50, 60)), few.test)


@pytest.mark.parametrize("name", NAMES[:3])
def test_fine_tuning_starts_from_the_zero_shot_scores(name, store, reports, normaliser, tmp_path):
    method = make(name)
    train(method, *data(store, reports, normaliser), QUICK, tmp_path, progress=False)
    x, mask = torch.randn(5, 12, 300), torch.ones(5, 12)
    with torch.no_grad():
        assert torch.allclose(
            method.adapting(PAPER9).predict(x, mask), method.restrict(PAPER9).predict(x, mask), atol=1e-4
        )
    assert method.centre.abs().max() > 0  # the level was followed, so this was no empty case


def test_ckepe_takes_over_what_merl_learned(store, reports, normaliser, tmp_path):
    assert registered("MERL-CKEPE").pretrained_as == "MERL"
    merl, ckepe = make("MERL"), build_method("MERL-CKEPE", LABELS, "tiny", embeddings=embeddings(seed=5))
    train(merl, *data(store, reports, normaliser), QUICK, tmp_path, progress=False)
    learned = {k for k, _ in merl.named_parameters()}
    load_weights(
        ckepe, {k: v for k, v in merl.state_dict().items() if k in learned or k.startswith("encoder.")}, partial=True
    )
    x = torch.randn(5, 12, 300)
    with torch.no_grad():
        own = ckepe.eval().predict(x)
        assert not torch.allclose(own, merl.eval().predict(x), atol=1e-3)
        merl.prompts = embeddings(seed=5)
        assert torch.equal(merl.predict(x), own)


# Records do not disturb each other, text is the label's own

@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_the_same_alone_and_without_absent_leads(name):
    method, x, mask = make(name).eval(), torch.randn(4, 12, 300), torch.ones(4, 12)
    mask[:, [7, 9, 11]] = 0
    garbage = torch.where(mask[..., None] > 0, x, 1e4)
    with torch.no_grad():
        together = method.predict(x, mask)
        assert torch.allclose(
            torch.cat([method.predict(a[None], m[None]) for a, m in zip(x, mask)]), together, atol=1e-4
        )
        assert torch.equal(method.predict(garbage, mask), together)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_json_and_builds_the_method_again(name):
    texts = method_texts(name, PAPER9)
    assert len(texts) == 9 and all(isinstance(t, str) and t for row in texts for t in row)
    for method in (make(name), make(name).restrict(PAPER9), make(name).adapting(PAPER9)):
        again = build_method(**json.loads(json.dumps(method.config)))
        assert again.name == name and set(again.state_dict()) == set(method.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_in_which_nobody_has_a_report_trains_on_what_is_left(name, store, reports, normaliser):
    method, (training, _) = make(name).train(), data(store, reports, normaliser)
    batch = training.__getitems__(list(range(8)))
    for labels in (batch["labels"], torch.zeros_like(batch["labels"]), torch.full_like(batch["labels"], torch.nan)):
        terms = method(dict(batch, labels=labels, report_known=torch.zeros(8, dtype=torch.bool)), 0.5)
        terms["total"].backward()
        assert all(v.isfinite() for v in terms.values())
        assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_mixed_precision_gives_the_same_losses_nearly(store, reports, normaliser):
    batch = data(store, reports, normaliser)[0].__getitems__(list(range(32)))
    for name in ("MERL", "METS", "KED"):
        method = make(name).eval()
        exact = method.loss(batch, 0.5)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = method.loss(batch, 0.5)
        assert all(abs(mixed[k] - exact[k]) < 0.05 * abs(exact[k]) + 0.02 for k in exact), name


# Real records

def test_real_reports_of_ptb_xl_are_split_and_batched(samples):
    from peace_nb.cohorts.load import load_cohort
    cohort = load_cohort("ptb-xl", samples / "ptb-xl-sample")
    text = cohort.table["report"]
    sentences = [split_report(r) for r in text]
    assert np.mean([len(s) > 0 for s in sentences]) > 0.95
    assert all("   " not in s and s.strip() == s for row in sentences for s in row)
    built = Reports.build(text.iloc[:40])
    assert built.known.sum() == sum(map(bool, sentences[:40])) and built.tokens.max() < len(built.vocabulary)
