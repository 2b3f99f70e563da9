"""The eleven errors that published code in this field makes. Each test fails if its error comes back."""
import re, shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import wfdb
from safetensors.torch import save_file
from scipy.signal import find_peaks
from scipy.special import expit

from peace_nb.cohorts.splits import check_disjoint, split_by_patient
from peace_nb.cohorts.load import load_cohort
from peace_nb.labels.aha import base_finding, labels_from_aha
from peace_nb.signals.prepare import LEADS, RAIL_MV, SignalSpec, prepare_flagged
from peace_nb.simulation.cohorts import write_simulated_cohort
from peace_nb.simulation.simulator import simulate_blocks
from peace_nb.store.build import build_store
from peace_nb.store.store import SignalStore
from peace_nb.store.batches import StoreDataset
from peace_nb.store.writer import to_int16
from peace_nb.evaluation.metrics import summarise
from peace_nb.methods.registry import build_method
from peace_nb.settings import PeaceError, load_profile
from peace_nb.training.checkpoint import Model, load_weights, predict_store
from peace_nb.training.protocol import check_split, lr_factor, rows_of, train_normaliser
from peace_nb.training.trainer import TrainConfig, train

CFG = TrainConfig(epochs=2, batch_size=12, lr=3e-3, seed=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Simulated cohorts in the real layouts, with the real habits, a fifth of the records damaged."
    root = tmp_path_factory.mktemp("home")
    for name in ("mimic-iv-ecg", "zzu-pecg"): write_simulated_cohort(name, root / name, 50, seed=9, damaged=.2)
    return root


@pytest.fixture(scope="module")
def mimic(home): return load_cohort("mimic-iv-ecg", home / "mimic-iv-ecg")


@pytest.fixture(scope="module")
def zzu(home): return load_cohort("zzu-pecg", home / "zzu-pecg")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "(store of 72 records, split by record position: every patient is one record here)"
    spec = SignalSpec(fs=50, seconds=5, band=None)
    store = SignalStore.create(
        tmp_path_factory.mktemp("store") / "s", spec, simulate_blocks(72, spec, population="adult", seed=4), total=72
    )
    return store, pd.Series(np.repeat(["train", "val", "test"], [36, 18, 18]), index=store.table.index)


def peace(store):
    labels = tuple(store.labels.columns)
    return build_method(
        "PEACE", labels, encoder="tiny",
        embeddings=torch.randn(len(labels), 3, 16, generator=torch.Generator().manual_seed(0)), d=32, d_align=16
    )


def test_trap_01_mimic_stores_avf_before_avl(mimic, tmp_path):
    "Lead by name in the cohort, and still so in the array that models read."
    store = build_store(
        mimic.part(mimic.table.index[:12]), SignalSpec(fs=500, band=None), tmp_path / "s", progress=False
    )
    for i, rid in enumerate(store.table.index):
        rec = wfdb.rdrecord(str(mimic.root / mimic.table.path[rid]))
        assert rec.sig_name[4:6] == ["aVF", "aVL"]
        avf, avl = np.nan_to_num(rec.p_signal[:, 4]), np.nan_to_num(rec.p_signal[:, 5])
        x, mask = mimic.signal(rid)
        if mask[4:6].all():
            assert np.allclose(np.nan_to_num(x[5]), avf, atol=1e-5) and np.allclose(np.nan_to_num(x[4]), avl, atol=1e-5)
        (stored,), (m,) = store.batch([i])
        if m[4:6].all() and not np.isnan(rec.p_signal[:, 4:6]).any() and np.std(avf - avl) > .02:
            assert np.abs(stored[5] - avf).max() < .001 < np.abs(stored[4] - avf).max()


def test_trap_02_the_eighth_channel_of_a_nine_lead_child_is_v3(zzu):
    nine = zzu.table.index[zzu.table.leads == 9]
    assert len(nine) >= 3
    for rid in nine:
        rec = wfdb.rdrecord(str(zzu.root / zzu.table.path[rid]))
        assert rec.n_sig == 9 and rec.sig_name[7].upper() == "V3"
        x, mask = zzu.signal(rid)
        assert not mask[[7, 9, 11]].any() and not x[[7, 9, 11]].any()
        if mask[8]: assert np.allclose(np.nan_to_num(x[8]), np.nan_to_num(rec.p_signal[:, 7]), atol=1e-4)


def test_trap_02_no_filter_removes_the_youngest_silently(zzu, tmp_path):
    "Every nine-lead child is in the store, masked; the youngest are most of them."
    store = build_store(zzu, SignalSpec(fs=100), tmp_path / "s", progress=False)
    nine = zzu.table.index[zzu.table.leads == 9]
    assert set(nine) <= set(store.table.index) | set(store.set_aside.record_id)
    kept = store.table.index.get_indexer([i for i in nine if i in store.table.index])
    assert len(kept) > .9 * len(nine) and not store.mask[kept][:, [7, 9, 11]].any()
    young = zzu.table.age_days < 365
    assert (zzu.table.leads[young] == 9).mean() > (zzu.table.leads[~young] == 9).mean()


def test_trap_03_findings_come_as_codes_as_prose_and_with_modifiers():
    frame, coverage = labels_from_aha(
        pd.Series(
            ["'C21'", "'Left ventricular high voltage';'L147'", "'L145+Modifier362'", "'I102';'First-degree AV block'"]
        )
    )
    assert frame.STACH[0] == 1 and frame.LVHV[1] == 1 and frame.TABN[1] == 1 and frame.AVB1[3] == 1
    assert base_finding("L145+Modifier362") == "L145" and len(coverage.unmatched) == 0
    plain, _ = labels_from_aha(pd.Series(["'L145'"]))
    assert frame.iloc[2].equals(plain.iloc[0].rename(2))


def test_trap_03_every_token_of_fifty_real_rows_is_known(samples):
    rows = pd.read_csv(samples / "zzu-pecg-sample" / "AttributesDictionary.rows50.csv")
    for column, vocabulary in (("AHA_code", "aha"), ("CHN_code", "chn")):
        _, coverage = labels_from_aha(rows[column], vocabulary)
        # a code the real table uses and its own code book lacks
        assert set(coverage.unmatched.index) <= ({"F64"} if vocabulary == "chn" else set())
        tokens = sum(len([t for t in v.split(";") if t.strip(" '")]) for v in rows[column].dropna())
        assert coverage.codes.n.sum() + coverage.unmatched.sum() == tokens


def test_trap_04_patients_not_records_are_split(mimic, zzu, small):
    for c in (mimic, zzu):
        assert c.table.patient_id.nunique() < len(c)            # several records a patient, or there is nothing to test
        split = split_by_patient(c.table, c.labels, seed=2)
        assert split.groupby(c.table.patient_id).nunique().max() == 1
        careless = pd.Series(
            np.random.default_rng(0).choice(["train", "val", "test"], len(c), p=[0.8, 0.1, 0.1]), index=c.table.index
        )
        with pytest.raises(PeaceError, match="leaks"): check_disjoint(c.table, careless)
    store, split = small
    check_split(store.table.patient_id, split)
    with pytest.raises(PeaceError, match="leaks"): check_split(store.table.patient_id.map(lambda p: "the same"), split)


def test_trap_05_statistics_are_fitted_on_train_only(small, tmp_path):
    "Test records a hundred times larger leave the scale as it was; training records do not."
    store, split = small
    before = train_normaliser(store, split)
    for part, same in (("test", True), ("val", True), ("train", False)):
        path = Path(shutil.copytree(store.path, tmp_path / part))
        units = np.load(path / "signals.npy", mmap_mode="r+")
        units[rows_of(split, part)] = np.clip(units[rows_of(split, part)].astype(int) * 100, -32767, 32767)
        units.flush()
        after = train_normaliser(SignalStore.open(path), split)
        assert (np.array_equal(after.mean, before.mean) and np.array_equal(after.std, before.std)) is same


class Fixed(torch.nn.Module):
    "Logits that depend on the first sample, with one label shifted."
    def __init__(self, labels, shift=0.0):
        super().__init__()
        self.labels, self.shift, self.name = labels, shift, "fixed"
    def predict(self, signals, mask=None):
        out = signals[:, 0, :1].expand(-1, len(self.labels)) * torch.arange(1, 1 + len(self.labels))
        return out + torch.nn.functional.one_hot(torch.tensor(0), len(self.labels)) * self.shift


def test_trap_06_no_softmax_across_labels(small):
    "The score of a label does not move when another label's logit does."
    store, split = small
    labels, norm = tuple(store.labels.columns), train_normaliser(store, split)
    wide = [
        predict_store(Model(Fixed(labels, s), store.spec, norm, labels), store).pivot(
            index="record_id", columns="label", values="score"
        )
        for s in (0.0, 7.0)
    ]
    assert (
        np.allclose(wide[0].drop(columns=labels[0]), wide[1].drop(columns=labels[0]))
        and (wide[1][labels[0]] > wide[0][labels[0]]).all()
    )
    x, _ = store.batch([3])
    first = norm.apply(x, store.mask[[3]])[0, 0, 0]
    assert np.allclose(
        wide[0].loc[store.table.index[3], list(labels)], expit(first * np.arange(1, 1 + len(labels))), atol=1e-5
    )


def predictions(truth, score):
    n, k = truth.shape
    return pd.DataFrame(
        {
            "record_id": np.repeat([f"r{i}" for i in range(n)], k),
            "patient_id": np.repeat([f"p{i}" for i in range(n)], k), "label": np.tile([f"L{j}" for j in range(k)], n),
            "score": score.reshape(-1), "truth": truth.reshape(-1).astype(float)
        }
    )


def test_trap_06_a_label_without_both_classes_is_never_scored_and_every_resample_keeps_both():
    rng = np.random.default_rng(0)
    # common, two positives, none
    truth = np.zeros((200, 3))
    truth[:100, 0] = 1
    truth[:2, 1] = 1
    score = rng.random((200, 3)) + truth * .8
    t = summarise(predictions(truth, score), n_boot=300).set_index("label")
    assert np.isnan(t.auroc["L2"]) and not t.scored["L2"] and t.reason["L2"]
    assert t.auroc["macro"] == pytest.approx(t.auroc[["L0", "L1"]].mean())
    # a resample scored 0.5 would pull it down
    assert ((t.lo <= t.auroc) & (t.auroc <= t.hi))[["L0", "L1", "macro"]].all() and t.lo["L1"] > 0.6


def test_trap_06_training_never_sees_the_test_records(small, tmp_path, monkeypatch):
    "Neither to learn nor to choose a checkpoint; the kept one is the best of validation."
    store, split = small
    norm, seen = train_normaliser(store, split), set()
    real = SignalStore.batch
    monkeypatch.setattr(
        SignalStore, "batch", lambda self, idx: (seen.update(np.asarray(idx).ravel().tolist()), real(self, idx))[1]
    )
    data = {p: StoreDataset(store, rows_of(split, p), norm) for p in ("train", "val")}
    result = train(
        build_method("ECG-only", tuple(store.labels.columns), encoder="tiny"), data["train"], data["val"], CFG,
        tmp_path / "run", progress=False
    )
    assert (
        seen
        and not seen & set(rows_of(split, "test").tolist())
        and seen == set(rows_of(split, "train").tolist()) | set(rows_of(split, "val").tolist())
    )
    scored = [c for c in result.val if "auroc" in c.lower()]
    assert scored and result.val[scored[0]].notna().any()


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    store, split = small
    norm, method = train_normaliser(store, split), peace(small[0])
    before = {k: v.detach().clone() for k, v in method.named_parameters()}
    data = {p: StoreDataset(store, rows_of(split, p), norm) for p in ("train", "val")}
    result = train(method, data["train"], data["val"], CFG, tmp_path_factory.mktemp("trap7") / "run", progress=False)
    return method, before, result


def test_trap_07_whatever_should_train_does(trained, small):
    "Every parameter moved, the projections of the text among them; the frozen text embeddings are no parameters at all."
    fresh, k = peace(small[0]), len(small[0].labels.columns)
    batch = {"signals": torch.randn(4, 12, 250), "mask": torch.ones(4, 12), "labels": torch.eye(4, k)}
    fresh.loss(batch, .5)["total"].backward()
    blocked = [n for n, p in fresh.named_parameters() if p.requires_grad and p.grad is None]
    assert not blocked, blocked                                            # a `no_grad` around the text, for one
    method, before, _ = trained
    after = dict(method.named_parameters())
    still = [k for k, v in before.items() if v.requires_grad and torch.equal(v, after[k].detach())]
    assert not still, still
    assert any("know" in k or "axis" in k or "axes" in k or "text" in k for k in before), sorted(before)
    assert all(v.requires_grad for v in after.values())


def test_trap_07_the_schedule_is_stepped_once_an_update(trained):
    log = trained[2].log
    total = len(log)
    assert total == CFG.epochs * 3 and log.step.tolist() == list(range(1, total + 1))  # 36 records in batches of 12
    assert np.allclose(log.lr, [CFG.lr * lr_factor(i, total, CFG.warmup, CFG.final_lr) for i in range(total)])
    assert log.lr.iloc[-1] == pytest.approx(CFG.lr * CFG.final_lr)


def test_trap_08_rails_lengths_days_and_quotes_of_zzu(zzu, home, tmp_path):
    store = build_store(zzu, SignalSpec(fs=100), tmp_path / "s", progress=False)
    raw = pd.read_csv(home / "zzu-pecg" / "AttributesDictionary.csv")
    assert raw.Age.str.fullmatch(r"\d+d").all() and set(raw.Gender) <= {"'Male'", "'Female'"}
    assert (
        zzu.table.age_days == raw.Age.str[:-1].astype(float).to_numpy()
    ).all() and zzu.table.age_days.max() < 16 * 366
    assert (zzu.table.sex == raw.Gender.map({"'Male'": "M", "'Female'": "F"}).to_numpy()).all()
    railed = store.table.index[store.table.quality.str.contains("rail:")]
    assert len(railed) and all(np.nanmax(np.abs(zzu.signal(r)[0])) >= RAIL_MV for r in railed[:5])  # kept, and said so
    for seconds in (5, 120):
        x, mask, flags = prepare_flagged(
            np.random.default_rng(0).normal(0, 0.3, (12, seconds * 500)), LEADS, 500, SignalSpec(fs=100)
        )
        assert (
            x.shape == (12, 1000)
            and mask.all()
            and ("short" in flags) == (seconds < 10)
            and (seconds >= 10 or not x[:, 520:].any())
        )


def test_trap_09_nan_and_zero_leads_and_what_was_not_measurable(mimic, home, tmp_path):
    m = pd.read_csv(home / "mimic-iv-ecg" / "machine_measurements.csv")
    columns = [
        c
        for c in ("rr_interval", "p_onset", "p_end", "qrs_onset", "qrs_end", "t_end", "p_axis", "qrs_axis", "t_axis")
        if c in m
    ]
    assert m[columns].isin([29999, 32767, 65535]).any().any()
    assert not mimic.table[columns].isin([29999, 32767, 65535]).any().any()
    store = build_store(mimic, SignalSpec(fs=100), tmp_path / "s", progress=False)
    x, mask = store.batch(np.arange(len(store)))
    assert np.isfinite(x).all() and not x[~mask].any() and not mask.all()
    for i in np.flatnonzero(~mask.all(1)): assert re.search("flat:|empty:|missing:", store.table.quality.iloc[i])
    dead = [
        r
        for r in mimic.table.index
        if (lambda p: (np.nan_to_num(p) == 0).all(0).any())(
            wfdb.rdrecord(str(mimic.root / mimic.table.path[r])).p_signal
        )
    ]
    assert dead and all(not store.mask[store.table.index.get_loc(r)].all() for r in dead if r in store.table.index)


def test_trap_10_weights_that_do_not_fit_are_refused_and_reported(small, tmp_path):
    method = peace(small[0])
    own = {k: v.clone() for k, v in method.state_dict().items()}
    renamed = {f"module.{k}": v for k, v in own.items()}                  # what strict=False would swallow whole
    with pytest.raises(PeaceError, match="nothing was loaded"): load_weights(method, renamed)
    with pytest.raises(PeaceError, match="nothing was loaded"): load_weights(method, renamed, partial=True)
    half = dict(list(own.items())[: len(own) // 2])
    with pytest.raises(PeaceError, match="missing"): load_weights(method, half)
    report = load_weights(method, half | {"stranger": torch.zeros(2)}, partial=True)
    assert (
        sorted(report["loaded"]) == sorted(half)
        and report["unexpected"] == ["stranger"]
        and len(report["missing"]) == len(own) - len(half)
    )
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")


def beats_per_minute(x, fs=100):
    "Rate of the R peaks of one lead, counted as the network would."
    lead = np.abs(x - np.median(x))
    return 60 * len(find_peaks(lead, height=0.5 * np.quantile(lead, 0.999), distance=int(0.12 * fs))[0]) / (len(x) / fs)


def test_trap_11_ten_seconds_are_cropped_and_never_squeezed_unasked(tmp_path, small):
    assert SignalSpec().how == "crop"
    assert {load_profile(name).how_ten_seconds for name in ("smoke", "demo", "bench", "sample", "paper")} == {"crop"}
    t = np.arange(15_000) / 500
    heart = np.exp(-0.5 * (((t * 1.5) % 1 - 0.5) / 0.018) ** 2) * np.linspace(0.5, 1.5, 12)[:, None]   # 90 a minute
    for seconds in (10, 20, 30):
        x = prepare_flagged(heart[:, : seconds * 500], LEADS, 500, SignalSpec(fs=100))[0]
        assert beats_per_minute(x[1]) == pytest.approx(90, abs=7), seconds
    asked = prepare_flagged(heart, LEADS, 500, SignalSpec(fs=100, how="squeeze"))[0]
    assert beats_per_minute(asked[1]) == pytest.approx(270, abs=7)
    root = tmp_path / "children"
    write_simulated_cohort("zzu-pecg", root, 8, seed=2, lengths=((30, 1),), damaged=0)
    children = load_cohort("zzu-pecg", root)
    kept = build_store(children, SignalSpec(fs=100), tmp_path / "s", progress=False)
    for i, rid in enumerate(kept.table.index):
        signal, names, fs = children.raw(rid)
        x = prepare_flagged(signal[:, : int(12 * fs) + 1], names, fs, SignalSpec(fs=100))[0]
        assert np.array_equal(to_int16(x)[0], np.rint(kept.batch([i])[0][0] * 1000)), "what follows 12 s plays no part"
    squeezed = build_store(children, SignalSpec(fs=100, how="squeeze"), tmp_path / "q", progress=False)
    assert kept.fingerprint != squeezed.fingerprint
    with pytest.raises(PeaceError, match="squeezed"):
        SignalStore.open(tmp_path / "q", SignalSpec(fs=100))
    method = peace(small[0])
    model = Model(method.eval(), SignalSpec(fs=100), None, tuple(small[0].labels.columns))
    with pytest.raises(PeaceError, match="whole records squeezed and the model wants"): predict_store(model, squeezed)
