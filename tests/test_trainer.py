"""What the training notebooks cannot hold: real kills, several processes, damaged files, real records."""
import json, os, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from peace_nb.signals.prepare import SignalSpec
from peace_nb.simulation.simulator import simulate_blocks
from peace_nb.store.build import build_store
from peace_nb.store.store import SignalStore
from peace_nb.store.batches import StoreDataset
from peace_nb.methods.registry import build_method
from peace_nb.settings import PeaceError
from peace_nb.training.checkpoint import Model, load_model, predict_store, read_tensors, save_model
from peace_nb.training.protocol import rows_of, train_normaliser
from peace_nb.training.trainer import TrainConfig, adapt, train

SPEC = SignalSpec(fs=50, seconds=5, band=None)
SCRIPT = '''
import os, signal, sys, torch
torch.set_num_threads(1)
from test_trainer import build, CFG
from peace_nb.training.trainer import train
method, data = build(sys.argv[1])

def killing(function, when):
    "The function, until it is called for the `when`th time: then the process dies without a word, as after kill -9"
    calls = [0]
    def call(*args, **kwargs):
        calls[0] += 1
        if calls[0] == when: os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        return function(*args, **kwargs)
    return call

if len(sys.argv) > 3:
    if sys.argv[3] == "update": method.loss = killing(method.loss, 14)      # in the middle of an epoch, two updates after a state
    if sys.argv[3] == "write": os.replace = killing(os.replace, 5)          # between a temporary file and its rename
train(method, data["train"], data["val"], CFG, sys.argv[2])
'''
CFG = TrainConfig(epochs=6, batch_size=16, lr=3e-3, ema=0.9, checkpoint_every=3, seed=11)


def split_of(store):
    n = len(store)
    return pd.Series(np.repeat(["train", "val", "test"], [n // 2, n // 4, n - n // 2 - n // 4]), index=store.table.index)


def build(path):
    "PEACE and its data from a store that is already there: the same in every process"
    store = SignalStore.open(path)
    labels, split = tuple(store.labels.columns), split_of(store)
    texts = torch.randn(len(labels), 3, 16, generator=torch.Generator().manual_seed(0))
    method = build_method("PEACE", labels, encoder="tiny", embeddings=texts, d=32, d_align=16)
    normaliser = train_normaliser(store, split)
    return method, {part: StoreDataset(store, rows_of(split, part), normaliser) for part in ("train", "val", "test")}


def files(folder): return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


@pytest.fixture(scope="module")
def store_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("training") / "store"
    SignalStore.create(path, SPEC, simulate_blocks(160, SPEC, population="adult", seed=3), total=160)
    return path


@pytest.fixture(scope="module")
def straight(store_path, tmp_path_factory):
    "A run that nobody disturbs, in this process"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    method, data = build(store_path)
    result = train(method, data["train"], data["val"], CFG, tmp_path_factory.mktemp("straight") / "run", progress=False)
    torch.set_num_threads(threads)
    return result


def start(store_path, out, launcher=(), die=()):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    script = out.parent / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen([sys.executable, *launcher, str(script), str(store_path), str(out), *die], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_killed_run_ends_like_a_straight_one(store_path, straight, tmp_path):
    "Killed once in an update and once in the middle of a write, then left alone"
    out, steps = tmp_path / "run", []
    for moment in ("update", "write"):
        running = start(store_path, out, die=(moment,))
        text, _ = running.communicate(timeout=180)
        assert running.returncode not in (0, 1) and not (out / "result.json").exists(), text
        assert (moment == "write") == bool(list(out.glob("*.tmp")))                 # a half-made file lies about, under another name
        steps.append(read_tensors(out / "last.safetensors")[1]["step"])
    again = start(store_path, out)
    text, _ = again.communicate(timeout=180)
    assert again.returncode == 0, text
    assert 0 < steps[0] <= steps[1] < straight.steps and files(out) == files(straight.out_dir)


def test_two_processes_train_one_model(store_path, tmp_path):
    out = tmp_path / "run"
    running = start(store_path, out, ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    text, _ = running.communicate(timeout=300)
    assert running.returncode == 0, text[-2000:]
    result, log = json.loads((out / "result.json").read_text()), pd.read_csv(out / "log.csv")
    assert result["steps"] == len(log) == 6 * 5 and list(log["step"]) == list(range(1, 31))
    assert len(pd.read_csv(out / "val.csv")) == 7 and 0 < result["best_auroc"] < 1
    assert sorted(p.name for p in out.iterdir()) == ["best.safetensors", "log.csv", "result.json", "val.csv"]


def test_damaged_state_is_named(store_path, tmp_path):
    method, data = build(store_path)
    train(method, data["train"], None, CFG, tmp_path, progress=False, stop_after=4)
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(PeaceError, match="last.safetensors"): train(build(store_path)[0], data["train"], None, CFG, tmp_path, progress=False)
    train(build(store_path)[0], data["train"], None, CFG, tmp_path, progress=False, resume=False)   # and a new start is possible
    assert (tmp_path / "result.json").exists()


def test_validation_labels_reach_nothing_but_the_choice(store_path, tmp_path):
    "The weights after the last update do not depend on the validation split at all"
    ends = []
    for name, flip in (("one", False), ("two", True)):
        method, data = build(store_path)
        if flip: data["val"].labels = 1 - data["val"].labels
        train(method, data["train"], data["val"], CFG, tmp_path / name, progress=False, stop_after=12)
        ends.append({k: v for k, v in read_tensors(tmp_path / name / "last.safetensors")[0].items() if not k.startswith("rng")})
    assert all((ends[0][k] == ends[1][k]).all() for k in ends[0])


def test_scores_before_any_label_was_read_choose_nothing(store_path, tmp_path, monkeypatch):
    "ST-MEM paints for four of six epochs: meanwhile its score is chance, however high, and must neither be kept nor spend patience"
    _, data = build(store_path)
    method = build_method("ST-MEM", tuple(SignalStore.open(store_path).labels.columns), encoder="tiny", reconstruct=4 / 6, seconds=5.0)
    scores = iter([0.5, 0.99, 0.6, 0.5, 0.4, 0.55, 0.7])     # before training, then after each epoch
    import peace_nb.training.trainer as trainer
    monkeypatch.setattr(trainer, "macro_auroc", lambda truth, s: (next(scores), np.full(truth.shape[1], 0.5)))
    result = train(method, data["train"], data["val"], TrainConfig(epochs=6, batch_size=16, patience=2, seed=1), tmp_path / "run", progress=False)
    assert result.best_epoch == 6 and not result.stopped_early and method.labels_from == 4 / 6 and method.adapting(method.labels[:2]).labels_from == 0


@pytest.fixture
def checkpoint(store_path, tmp_path):
    method, data = build(store_path)
    return save_model(tmp_path / "model", method, SPEC, data["train"].normaliser)


@pytest.mark.parametrize("harm, message", [
    (lambda d: (d / "model.json").unlink(), "model.json does not exist"),
    (lambda d: (d / "model.safetensors").unlink(), "model.safetensors does not exist"),
    (lambda d: (d / "model.json").write_text("{"), "not readable JSON"),
    (lambda d: (d / "model.json").write_text("[]"), "lacks config"),
    (lambda d: (d / "model.safetensors").write_bytes(b"x" * 100), "not a readable safetensors file"),
    (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-8]), "not a readable safetensors file"),
    (lambda d: (d / "model.json").write_text((d / "model.json").read_text().replace('"format": 1', '"format": 9')), "format 9"),
    (lambda d: (d / "model.json").write_text((d / "model.json").read_text().replace('"LVH"', '"LVX"', 1)), "another label space"),
    (lambda d: (d / "model.json").write_text((d / "model.json").read_text().replace('"size": "tiny"', '"size": "small"')), "do not fit the model")])
def test_damaged_checkpoints_end_in_a_sentence(checkpoint, harm, message):
    load_model(checkpoint)
    harm(checkpoint)
    with pytest.raises(PeaceError, match=message) as fault: load_model(checkpoint)
    assert "\n" not in str(fault.value)


def test_another_label_space_is_refused(checkpoint):
    labels = load_model(checkpoint).labels
    with pytest.raises(PeaceError, match="adds NORM"): load_model(checkpoint, labels[1:])
    with pytest.raises(PeaceError, match="lacks AGE and adds TABN"): load_model(checkpoint, (*labels[:-1], "AGE"))
    with pytest.raises(PeaceError, match="another order"): load_model(checkpoint, labels[::-1])


def test_a_store_of_another_spec_is_refused(checkpoint, tmp_path):
    spec = SignalSpec(fs=100, seconds=5, band=None)
    other = SignalStore.create(tmp_path / "other", spec, simulate_blocks(4, spec, seed=0), total=4)
    with pytest.raises(PeaceError, match="prepared with"): predict_store(load_model(checkpoint), other)


def test_transfer_to_real_records(samples, tmp_path):
    "Adults of the real PTB-XL sample, zero-shot and few-shot, by patient; every test record is scored once for every label"
    from peace_nb.cohorts.load import load_cohort
    from peace_nb.cohorts.splits import split_by_patient
    from peace_nb.evaluation.metrics import fit_thresholds, summarise
    spec = SignalSpec(fs=100)
    cohort = load_cohort("ptb-xl", samples / "ptb-xl-sample")
    store = build_store(cohort, spec, tmp_path / "store", progress=False)
    split = split_by_patient(store.table, store.labels, seed=0)
    labels = tuple(store.labels.columns)
    method = build_method("ECG-only", labels, encoder="tiny")
    model = Model(method, spec, train_normaliser(store, split), labels)
    for how in ("zero-shot", "5-shot"):
        run = adapt(model, store, split, how, TrainConfig(epochs=1, batch_size=32), tmp_path / how, progress=False)
        assert len(run.test) == (split == "test").sum() * len(labels) and not run.test.duplicated(["record_id", "label"]).any()
        assert not set(run.test["patient_id"]) & set(run.val["patient_id"])
        table = summarise(run.test, fit_thresholds(run.val), n_boot=50)
        assert table["scored"].iloc[-1] and 0 <= table["lo"].iloc[-1] <= table["auroc"].iloc[-1] <= table["hi"].iloc[-1] <= 1
    assert not set(store.table.loc[run.support.index, "patient_id"]) & set(run.test["patient_id"])


def test_settings_may_be_listed_in_any_order():
    "50-shot listed first once gave its scores to zero-shot."
    from peace_nb.training.trainer import score_settings
    trained = type("M", (), {"trained": True, "adapts_unlabelled": False})()
    rows = lambda net, setting, cohort: pd.DataFrame({"net": [net or "pretrained"], "cohort": cohort})
    for order in (("zero-shot", "50-shot", "full"), ("50-shot", "full", "zero-shot")):
        found = pd.concat(score_settings(order, ["child", "extra"], trained, lambda setting: setting, rows)).groupby("setting")["net"].unique()
        assert {s: list(v) for s, v in found.items()} == {"zero-shot": ["pretrained"], "50-shot": ["50-shot"], "full": ["full"]}
