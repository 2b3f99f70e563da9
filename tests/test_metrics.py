"""Metrics against scikit-learn and against their own promises, on many random tables."""
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from peace_nb.evaluation.metrics import (
    bootstrap_auroc, combine_seeds, draws, fit_thresholds, panel, patient_weights, scorable, summarise, weighted_auprc,
    weighted_auroc
)
from peace_nb.settings import PeaceError
from peace_nb.training.trainer import macro_auroc


def invent(seed, n=None, labels=5, ties=False, missing=0.0):
    "Random predictions with clustered patients, rare labels, ties and unknown truths"
    rng = np.random.default_rng(seed)
    n = n or int(rng.integers(12, 120))
    patients = rng.integers(0, max(4, n // int(rng.integers(1, 5))), n)
    y = (rng.random((n, labels)) < rng.choice([0.0, 0.03, 0.2, 0.5, 0.97], labels)).astype(float)
    score = 1 / (1 + np.exp(-(y * rng.uniform(0, 4, labels) + rng.normal(size=y.shape))))
    if ties: score = score.round(1)
    y[rng.random(y.shape) < missing] = np.nan
    names = [f"L{k}" for k in range(labels)]
    return pd.DataFrame(
        {
            "record_id": np.repeat([f"r{i}" for i in range(n)], labels),
            "patient_id": np.repeat([f"p{p}" for p in patients], labels), "label": np.tile(names, n),
            "score": score.reshape(-1), "truth": y.reshape(-1)
        }
    )


@pytest.mark.parametrize("seed", range(60))
def test_estimates_equal_scikit_learn(seed):
    pred = invent(seed, ties=seed % 2 == 0, missing=0.2 * (seed % 3 == 0))
    thresholds = fit_thresholds(invent(seed + 1000))
    table = summarise(pred, thresholds, n_boot=0).set_index("label")
    for label, part in pred.dropna(subset="truth").groupby("label"):
        row = table.loc[label]
        assert (
            row["n"] == len(part)
            and row["n_pos"] == part["truth"].sum()
            and row["scored"] == (part["truth"].nunique() == 2)
        )
        if not row["scored"]:
            assert np.isnan(row["auroc"]) and row["reason"]
            continue
        assert row["auroc"] == pytest.approx(roc_auc_score(part["truth"], part["score"]), abs=1e-12)
        assert row["auprc"] == pytest.approx(average_precision_score(part["truth"], part["score"]), abs=1e-12)
        assert row["bacc"] == pytest.approx(
            balanced_accuracy_score(part["truth"], part["score"] >= thresholds.loc[label, "bacc"]), abs=1e-12
        )
        assert row["f1"] == pytest.approx(
            f1_score(part["truth"], part["score"] >= thresholds.loc[label, "f1"], zero_division=0), abs=1e-12
        )
    use = table.iloc[:-1]["scored"].astype(bool)
    assert table.loc["macro", "scored"] == use.any()
    for metric in ("auroc", "auprc", "bacc", "f1"):
        assert table.loc["macro", metric] == pytest.approx(
            table.iloc[:-1].loc[use, metric].mean(), abs=1e-12, nan_ok=True
        )


@pytest.mark.parametrize("seed", range(60))
def test_every_resample_keeps_both_classes_and_the_interval_holds_its_estimate(seed):
    pred = invent(seed, missing=0.1)
    table = summarise(pred, n_boot=400, seed=seed)
    done = table[table["scored"].astype(bool)]
    assert ((done["lo"] <= done["auroc"] + 1e-12) & (done["auroc"] <= done["hi"] + 1e-12)).all()
    found = bootstrap_auroc(pred, 400, seed)
    assert np.isfinite(found.to_numpy()).all() and list(found.columns[:-1]) == list(done["label"][:-1])


def test_weights_equal_repeated_records():
    "A weight of 3 is the record three times: the definition of a weighted metric"
    rng = np.random.default_rng(0)
    y, s, times = rng.integers(0, 2, 80), rng.random(80).round(1), rng.integers(0, 4, 80)
    for ours, theirs in ((weighted_auroc, roc_auc_score), (weighted_auprc, average_precision_score)):
        assert ours(y, s, times[:, None].astype(float))[0] == pytest.approx(
            theirs(np.repeat(y, times), np.repeat(s, times)), abs=1e-12
        )


def test_patients_move_together():
    "Copies of every record under the same patient must not make an interval narrower"
    pred = invent(3, n=100)
    copies = pd.concat([pred.assign(record_id=pred["record_id"] + f"x{i}") for i in range(8)])
    once, eight = (summarise(p, n_boot=200) for p in (pred, copies))
    pd.testing.assert_frame_equal(once[["auroc", "lo", "hi"]], eight[["auroc", "lo", "hi"]])


def test_order_of_rows_and_slices_of_memory_change_nothing():
    pred = invent(5, n=90)
    table, shuffled = (
        summarise(pred).set_index("label"), summarise(pred.sample(frac=1, random_state=1)).set_index("label")
    )
    pd.testing.assert_frame_equal(table[["auroc", "lo", "hi"]], shuffled.loc[table.index, ["auroc", "lo", "hi"]])
    p = panel(pred)
    weights, who = patient_weights(p.patients, 50)
    scored = scorable(p)["scored"].to_numpy()
    whole, sliced = draws(p, weights, who, scored), draws(p, weights, who, scored, most=3 * len(who))
    for metric in whole: np.testing.assert_allclose(whole[metric], sliced[metric], atol=1e-12)


def shifted(seed, shift, n=300):
    "One label whose scores are separable but for a little noise, with the boundary at `shift`"
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(float)
    score = 1 / (1 + np.exp(-(4 * y - 2 + 8 * (shift - 0.5) + rng.normal(0, 0.8, n))))
    return pd.DataFrame(
        {
            "record_id": [f"r{i}" for i in range(n)], "patient_id": [f"p{i}" for i in range(n)], "label": "L0",
            "score": score, "truth": y
        }
    )


def test_decisions_use_the_thresholds_of_validation():
    "When the test scores are shifted, thresholds tuned on the test set would show better numbers: what is reported must be the worse ones"
    val, test = shifted(7, 0.4), shifted(8, 0.7)
    honest, cheating = fit_thresholds(val), fit_thresholds(test)
    table, better = (summarise(test, t, n_boot=0).set_index("label").loc["L0"] for t in (honest, cheating))
    assert abs(honest.loc["L0", "bacc"] - cheating.loc["L0", "bacc"]) > 0.1
    for metric, of in (("bacc", balanced_accuracy_score), ("f1", f1_score)):
        assert table[metric] == pytest.approx(of(test["truth"], test["score"] >= honest.loc["L0", metric]), abs=1e-12)
        assert table[metric] < better[metric] - 0.02
    assert table["auroc"] == better["auroc"] and table["auprc"] == better["auprc"]       # ranks need no threshold


@pytest.mark.parametrize("seed", range(20))
def test_the_trainer_chooses_by_the_same_macro_auroc(seed):
    "Training has a few lines of its own, since it must not import the evaluation: the two must not drift apart"
    pred = invent(seed, ties=seed % 2 == 0, missing=0.2 * (seed % 3 == 0))
    wide = {c: pred.pivot(index="record_id", columns="label", values=c) for c in ("truth", "score")}
    mean, each = macro_auroc(wide["truth"].to_numpy(), wide["score"].to_numpy())
    table = summarise(pred, n_boot=0).set_index("label")
    np.testing.assert_allclose(each, table.loc[wide["truth"].columns, "auroc"].to_numpy(float), atol=1e-12)
    assert mean == pytest.approx(table.loc["macro", "auroc"], abs=1e-12, nan_ok=True)


def test_seeds_may_have_different_test_patients():
    table = combine_seeds([invent(20, n=80), invent(21, n=80)], n_boot=100)
    use = table["scored"].astype(bool)
    assert np.isfinite(table.loc[use, ["auroc", "lo", "hi", "sd"]].to_numpy()).all() and (table["seeds"] == 2).all()
    with pytest.raises(PeaceError, match="different labels"): combine_seeds([invent(1), invent(1, labels=3)])


def test_no_label_at_all():
    pred = invent(2).assign(truth=0.0)
    table = summarise(pred, n_boot=20)
    assert (
        not table["scored"].any()
        and table["auroc"].isna().all()
        and table["reason"].iloc[-1] == "no label can be scored"
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p[1:], "0 rows for record 'r0'"), (lambda p: pd.concat([p, p[:1]]), "2 rows"),
        (lambda p: p.assign(score=np.inf), "no finite score"), (lambda p: p.assign(truth=2), "not 0, 1 or NaN"),
        (lambda p: p.drop(columns="score"), "'score'"), (lambda p: p[:0], "empty")
    ],
)
def test_broken_tables_end_in_a_sentence(change, message):
    with pytest.raises(PeaceError, match=message): summarise(change(invent(1)))
