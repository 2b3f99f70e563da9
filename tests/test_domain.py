"What the notebooks of domain adaptation and fusion cannot hold: checkpoints, adaptation through stores, leakage, resuming."
import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from peace_nb.labels.space import LABELS, PAPER9
from peace_nb.signals.prepare import LEADS, SignalSpec
from peace_nb.simulation.simulator import simulate_blocks
from peace_nb.store.store import SignalStore
from peace_nb.store.batches import StoreDataset
from peace_nb.methods.registry import METHODS, Method, build_method, method_texts, registered
from peace_nb.settings import PeaceError
from peace_nb.training.checkpoint import Model, load_model, save_model
from peace_nb.training.protocol import lead_keep, paired_batches, epoch_batches, rows_of, setting, train_normaliser
from peace_nb.training.trainer import TrainConfig, adapt, adaptation_data, start_of, train

SPEC = SignalSpec(fs=50, seconds=5, band=None)
DOMAIN, FUSION = ("DANN", "DANN-U", "MMD"), ("EarlyFusion", "LateFusion")
CFG = TrainConfig(epochs=2, batch_size=16, lr=3e-3, checkpoint_every=3, seed=5, lead_dropout=0.4)


def files(folder): return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def split_of(store):
    n = len(store)
    return pd.Series(
        np.repeat(["train", "val", "test"], [n // 2, n // 4, n - n // 2 - n // 4]), index=store.table.index
    )


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    "Simulated adults and children, each with a split"
    found = {}
    for kind, n in (("adult", 128), ("child", 96)):
        store = SignalStore.create(
            tmp_path_factory.mktemp(kind) / "store", SPEC, simulate_blocks(n, SPEC, population=kind, seed=3), total=n
        )
        found[kind] = (store, split_of(store))
    return found


def embeddings(seed=0):
    return F.normalize(torch.randn(len(LABELS), 3, 16, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make(name, **cfg):
    return build_method(
        name, LABELS, "tiny", seed=1, embeddings=embeddings() if registered(name).texts else None, **cfg
    )


def as_model(name, sides, **cfg):
    return Model(make(name, **cfg).eval(), SPEC, train_normaliser(*sides["adult"]), LABELS)


def batch_of(n=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    return dict(
        signals=torch.randn(n, 12, 250, generator=g), mask=torch.ones(n, 12),
        labels=(torch.rand(n, 27, generator=g) < 0.15).float()
    )


# Registration

def test_every_registered_method_says_what_it_needs():
    read = []
    for name, known in METHODS.items():
        assert " " not in name and isinstance(known.reads_source, bool) and isinstance(known.reads_reports, bool)
        if known.texts is not None and known.texts not in read:
            read.append(known.texts)
            texts = method_texts(name, PAPER9)
            assert len(texts) == 9 and all(
                len(row) == len(texts[0]) and all(isinstance(t, str) for t in row) for row in texts
            )
        if known.pretrained_as: assert known.pretrained_as in METHODS
    assert {n for n in (*DOMAIN, *FUSION) if METHODS[n].reads_source} == set(DOMAIN) and METHODS[
        "DANN-U"
    ].adapts_unlabelled


@pytest.mark.parametrize("name", [*DOMAIN, *FUSION])
def test_a_checkpoint_brings_the_method_back(name, sides, tmp_path):
    model = as_model(name, sides)
    for step, method in enumerate(
        (model.method, model.method.restrict(PAPER9), start_of(model.method, PAPER9, True, 0))
    ):
        save_model(tmp_path / str(step), method, SPEC, model.normaliser)
        again = load_model(tmp_path / str(step)).method
        x = batch_of()["signals"]
        with torch.no_grad(): assert torch.equal(again.predict(x), method.eval().predict(x))
        assert isinstance(again, Method) and again.name == name and again.reads_source == METHODS[name].reads_source


# Adaptation

@pytest.mark.parametrize("name", DOMAIN)
def test_without_a_target_it_is_ecg_only_to_the_bit(name, sides, tmp_path):
    "One pretraining serves all of them"
    store, split = sides["adult"]
    data = [StoreDataset(store, rows_of(split, part), train_normaliser(store, split)) for part in ("train", "val")]
    for n in ("ECG-only", name): train(make(n), *data, CFG, tmp_path / n, progress=False)
    for file in ("log.csv", "val.csv", "best.safetensors"):
        assert files(tmp_path / "ECG-only")[file] == files(tmp_path / name)[file]


@pytest.mark.parametrize("name", ["DANN-U", "MMD"])
def test_no_label_of_the_target_reaches_the_loss_or_the_choice(name, sides, tmp_path):
    model, (child, split) = as_model(name, sides), sides["child"]
    runs = {}
    for which in ("true", "inverted", "unknown"):
        store = copy.copy(child)
        store.labels = {"true": child.labels, "inverted": 1 - child.labels, "unknown": child.labels * np.nan}[which]
        runs[which] = adapt(
            model, store, split, "unlabelled", CFG, tmp_path / which, source=sides["adult"], progress=False
        )
        assert runs[which].support is None
    for which in ("inverted", "unknown"):
        for file in ("log.csv", "val.csv", "best.safetensors", "result.json"):
            assert files(tmp_path / which)[file] == files(tmp_path / "true")[file]
        assert (runs[which].test["score"] == runs["true"].test["score"]).all()
    # while the adults' labels do reach them
    changed = copy.copy(sides["adult"][0])
    changed.labels = 1 - changed.labels
    adapt(
        model, child, split, "unlabelled", CFG, tmp_path / "adults", source=(changed, sides["adult"][1]), progress=False
    )
    assert files(tmp_path / "adults")["best.safetensors"] != files(tmp_path / "true")["best.safetensors"]


def test_only_the_sources_training_and_validation_rows_are_read(sides, tmp_path):
    model, (adult, split), asked = as_model("DANN-U", sides), sides["adult"], []
    ear = copy.copy(adult)
    ear.batch = lambda rows: (asked.extend(np.asarray(rows).tolist()), adult.batch(rows))[1]
    adapt(model, *sides["child"], "unlabelled", CFG, tmp_path, source=(ear, split), progress=False)
    assert set(split.iloc[asked]) == {"train", "val"}


@pytest.mark.parametrize("name", ["DANN", "EarlyFusion"])
def test_a_stopped_adaptation_ends_like_a_straight_one(name, sides, tmp_path):
    child, split = sides["child"]
    for folder, stops in (("one go", (None,)), ("three", (2, 4, None))):
        for stop in stops:
            model = as_model(name, sides)
            method = start_of(model.method, LABELS, True, CFG.seed)
            def data(rows): return StoreDataset(child, rows, model.normaliser, LABELS)  # noqa: B023
            both = adaptation_data(
                method, "full", data, rows_of(split, "train"), rows_of(split, "val"), sides["adult"], LABELS
            )
            train(method, *both, CFG, tmp_path / folder, progress=False, stop_after=stop)
    assert files(tmp_path / "three") == files(tmp_path / "one go")


def test_a_state_with_other_adults_is_not_continued(sides, tmp_path, capsys):
    child, split = sides["child"]
    adult, parts = sides["adult"]
    fewer = parts.where(~((parts == "train") & (np.arange(len(parts)) % 2 == 0)), "test")
    model = as_model("MMD", sides)
    def data(rows): return StoreDataset(child, rows, model.normaliser, LABELS)
    for source in ((adult, parts), (adult, fewer)):
        method = start_of(model.method, LABELS, True, 0)
        both = adaptation_data(method, "full", data, rows_of(split, "train"), rows_of(split, "val"), source, LABELS)
        train(method, *both, CFG, tmp_path, stop_after=3)
    assert "its train differ" in capsys.readouterr().out


def test_every_row_of_a_table_gets_the_same_records_and_updates(sides, tmp_path):
    heard, steps, (child, split) = {}, {}, sides["child"]
    for name in ("ECG-only", "DANN", "EarlyFusion"):
        heard[name], ear = [], copy.copy(child)
        ear.batch = lambda rows, to=heard[name]: (to.extend(np.asarray(rows).tolist()), child.batch(rows))[1]
        steps[name] = adapt(
            as_model(name, sides), ear, split, "5-shot", CFG, tmp_path / name, source=sides["adult"], progress=False
        ).result.steps
    assert len({tuple(h) for h in heard.values()}) == 1 and len(set(steps.values())) == 1


def test_what_cannot_be_adapted_is_refused_in_a_sentence(sides, tmp_path):
    child = sides["child"]
    with pytest.raises(PeaceError, match="reads no source"):
        adapt(as_model("ECG-only", sides), *child, "unlabelled", CFG, tmp_path, source=sides["adult"], progress=False)
    with pytest.raises(PeaceError, match="needs the source"):
        adapt(as_model("DANN", sides), *child, "full", CFG, tmp_path, progress=False)
    with pytest.raises(PeaceError, match="unlabelled"): setting("unlabeled")
    with pytest.raises(PeaceError, match="EarlyFusion needs descriptor embeddings"):
        build_method("EarlyFusion", LABELS, "tiny")
    with pytest.raises(PeaceError, match="text_dropout"): make("LateFusion", text_dropout=2)
    with pytest.raises(PeaceError, match="no layer 'tokens'"): make("MMD", layers=["tokens"])


def test_unknown_labels_teach_nothing_but_the_domains():
    method = make("DANN").adapting(LABELS).train()
    batch = {**batch_of(seed=1), "source": batch_of(seed=2)}
    for side in (batch, batch["source"]): side["labels"] = torch.full_like(side["labels"], torch.nan)
    terms = method(batch, 0.5)
    terms["total"].backward()
    assert (
        terms["cls"] == 0
        and method.head.weight.grad.abs().max() == 0
        and method.encoder.stem.conv.weight.grad.abs().max() > 0
    )


# Lead dropout

def test_lead_dropout_is_for_training_batches_only(sides, tmp_path):
    store, split = sides["adult"]
    data = [StoreDataset(store, rows_of(split, part), train_normaliser(store, split)) for part in ("train", "val")]
    method = make("ECG-only")
    seen = {True: [], False: []}
    method.encoder.register_forward_pre_hook(lambda module, args: seen[module.training].append(args[1].clone()))
    train(method, *data, CFG, tmp_path, progress=False)
    trained, scored = torch.cat(seen[True]), torch.cat(seen[False])
    assert scored.all() and 0.2 < (~trained.bool()).any(1).float().mean() < 0.6 and trained.any(1).all()
    gaps = [LEADS.index(lead) for lead in ("V2", "V4", "V6")]
    nine = (trained[:, gaps] == 0).all(1) & (trained.sum(1) == 9)
    assert nine.float().sum() / (~trained.bool()).any(1).float().sum() > 0.3


def test_no_record_ever_loses_all_its_leads():
    rng = np.random.default_rng(0)
    recorded = rng.random((5000, 12)) < rng.random((5000, 1))
    recorded[~recorded.any(1), 7] = True
    kept = lead_keep(recorded, 1.0, rng)
    assert kept.any(1).all() and not (kept & ~recorded).any() and (kept != recorded).any()


@pytest.mark.parametrize("n, n_source", [(1, 1), (7, 100), (100, 7), (33, 33)])
def test_pairs_follow_the_target(n, n_source):
    batches = epoch_batches(n, 16, 4, 2)
    pairs = paired_batches(batches, n_source, 4, 2)
    assert all((p[:, 0] == b).all() for p, b in zip(pairs, batches, strict=True))
    counts = np.bincount(np.concatenate(pairs)[:, 1], minlength=n_source)
    assert counts.sum() == n and counts.max() - counts.min() <= 1


# Fusion reads the ECG alone

def trained(name):
    torch.manual_seed(0)
    method = make(name).train()
    optimiser = torch.optim.AdamW(method.parameters(), 1e-2)
    for step in range(3):
        optimiser.zero_grad()
        method(batch_of(seed=step), step / 3)["total"].backward()
        optimiser.step()
    return method.eval()


@pytest.mark.parametrize("name", FUSION)
def test_the_text_side_can_be_deleted_or_armed(name):
    method, batch = trained(name), batch_of(seed=9)

    def forbidden(*args): raise AssertionError("the text side was called")

    with torch.no_grad():
        before = method.predict(batch["signals"], batch["mask"])
        handles = [m.register_forward_pre_hook(forbidden) for m in method.knowledge.modules()]
        assert torch.equal(method.predict(batch["signals"], batch["mask"]), before)
        with pytest.raises(AssertionError, match="text side"): method.loss(batch, 0.5)          # the trap itself works
        for handle in handles: handle.remove()
        method.knowledge = None
        assert torch.equal(method.predict(batch["signals"], batch["mask"]), before)


@pytest.mark.parametrize("name", FUSION)
def test_a_record_without_its_text_is_read_as_at_the_examination(name):
    "The logits of the records whose text is withheld are those of `predict`; of the others they are not"
    method, batch = trained(name), batch_of(seed=9)
    kept = torch.arange(12) % 2 == 0
    with torch.no_grad():
        fused = method.fused(method.encoder(batch["signals"], batch["mask"]), batch["labels"], kept)
        alone = method.predict(batch["signals"], batch["mask"])
    assert torch.allclose(fused[~kept], alone[~kept], atol=1e-5) and not torch.allclose(
        fused[kept], alone[kept], atol=1e-3
    )


def test_only_the_domain_head_learns_faster(sides, tmp_path):
    from peace_nb.training.trainer import Run
    child, split = sides["child"]
    for name, factors in (("DANN", {1.0, 10.0}), ("MMD", {1.0}), ("ECG-only", {1.0})):
        method = start_of(make(name), LABELS, True, 0)
        run = Run(method, StoreDataset(child, rows_of(split, "train")), None, CFG, tmp_path / name, progress=False)
        run.step = 5
        run.update(
            {**batch_of(8, 1), "index": torch.arange(8), **({"source": batch_of(8, 2)} if method.reads_source else {})}
        )
        rates = {group["lr"] for group in run.opt.param_groups}
        assert {round(r / min(rates), 6) for r in rates} == factors
        fast = {id(p) for group in run.opt.param_groups if group["lr"] > min(rates) for p in group["params"]}
        assert fast == {id(p) for k, p in method.named_parameters() if k.startswith("adversary.")}
