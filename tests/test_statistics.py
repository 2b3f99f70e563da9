"""Comparisons of methods: against SciPy and brute force on many tables, and what they must refuse to say."""

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT
from peace_nb.evaluation.metrics import combine_seeds
from peace_nb.pipeline.rows import ABLATIONS, GROUPS, method_group, method_order
from peace_nb.evaluation.comparisons import Scores, compare, compare_pairs
from peace_nb.evaluation.sentences import claim_sentence
from peace_nb.evaluation.statistics import delong_labels, delong_parts, holm, make_cell, paired_difference
from peace_nb.pipeline.tables import load_reported
from peace_nb.settings import PeaceError


def invent(seed, methods=("A", "B"), seeds=2, patients=60, labels=3, ahead=0.0, missing=0.0, ties=False, training=0.0):
    "Predictions of several methods on the same records"
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    y = (rng.random((patients, labels))[who] < np.linspace(0.1, 0.5, labels)).astype(float)
    base, hidden = rng.normal(size=y.shape), rng.random(y.shape) < missing
    out = []
    for m in methods:
        for k in range(seeds):
            s = y * (1 + ahead * (m == methods[0]) + training * rng.normal()) + base + 0.4 * rng.normal(size=y.shape)
            out.append(
                pd.DataFrame(
                    {
                        "record_id": np.repeat([f"r{i}" for i in range(len(who))], labels),
                        "patient_id": np.repeat([f"p{i}" for i in who], labels),
                        "label": np.tile([f"L{i}" for i in range(labels)], len(who)),
                        "score": (s.round(1) if ties else s).ravel(), "truth": np.where(hidden, np.nan, y).ravel(),
                        "method": m, "seed": k, "setting": "50-shot"
                    }
                )
            )
    return pd.concat(out, ignore_index=True)


def frames(pred, method): return {k: g for k, g in pred[pred["method"] == method].groupby("seed")}


@pytest.mark.parametrize("seed", range(20))
def test_midranks_equal_all_pairs(seed):
    rng = np.random.default_rng(seed)
    y = (rng.random(int(rng.integers(8, 80))) < 0.4).astype(float)
    y[:4] = [0, 0, 1, 1]
    scores = [(y * rng.uniform(0, 2) + rng.normal(size=len(y))).round(seed % 3) for _ in range(2)]
    psi = [(s[y == 1][:, None] > s[y == 0]) + 0.5 * (s[y == 1][:, None] == s[y == 0]) for s in scores]
    theirs = np.cov([p.mean(1) for p in psi]) / y.sum() + np.cov([p.mean(0) for p in psi]) / (1 - y).sum()
    (a, one), (b, two) = (delong_parts(y, s) for s in scores)
    np.testing.assert_allclose([a, b], [p.mean() for p in psi], atol=1e-12)
    np.testing.assert_allclose([[one @ one, one @ two], [two @ one, two @ two]], theirs, atol=1e-14)


@pytest.mark.parametrize("seed", range(10))
def test_a_macro_of_copies_is_the_label(seed):
    "Three copies of one label have that label's AUROC, difference and error: the joint covariance knows that they are one"
    pred = invent(seed, labels=1, seeds=1, ties=seed % 2 == 0)
    copies = pd.concat([pred.assign(label=f"L{i}") for i in range(3)])
    one, three = (delong_labels(frames(p, "A"), frames(p, "B")).set_index("label").loc["macro"] for p in (pred, copies))
    np.testing.assert_allclose(one.to_numpy(float), three.to_numpy(float), atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_levels_are_those_of_table_2_and_signs_turn_with_the_order(seed):
    pred = invent(seed, missing=0.2 * (seed % 2))
    cells = {m: make_cell(frames(pred, m), m, "50-shot", 60) for m in "AB"}
    ab, ba = paired_difference(cells["A"], cells["B"]), paired_difference(cells["B"], cells["A"])
    for m, key in (("A", "auroc_a"), ("B", "auroc_b")):
        assert ab[key] == pytest.approx(
            combine_seeds(list(frames(pred, m).values()), n_boot=0).set_index("label").loc["macro", "auroc"], abs=1e-12
        )
    assert (
        ab["difference"] == pytest.approx(-ba["difference"])
        and ab["lo"] == pytest.approx(-ba["hi"])
        and ab["p_all"] == pytest.approx(ba["p_all"])
        and ab["p_delong"] == pytest.approx(ba["p_delong"])
    )
    assert ab["lo"] <= ab["difference"] <= ab["hi"] and ab["lo_all"] <= ab["difference"] <= ab["hi_all"]


def test_order_of_rows_labels_and_methods_changes_nothing():
    pred = invent(3, methods=("A", "B", "C"))
    first = compare(pred, "A", ["B", "C"], ["50-shot"], n_boot=50)
    again = compare(
        pred.sample(frac=1, random_state=1).sort_values("seed", kind="stable"), "A", ["C", "B"], ["50-shot"], n_boot=50
    )
    pd.testing.assert_frame_equal(first.set_index("method"), again.set_index("method").loc[["B", "C"]])


def test_training_scatter_is_not_taken_for_a_difference():
    "Equal methods whose trainings scatter: networks do differ, methods must not be told apart"
    found = [
        compare(
            invent(s, methods=tuple("ABCDE"), seeds=3, patients=150, training=0.4), "A", list("BCDE"), ["50-shot"],
            n_boot=40
        )
        for s in range(20)
    ]
    assert np.mean([(t["p_boot"] < 0.05).mean() for t in found]) > 0.3
    assert np.mean([(t["verdict"] != "not distinguishable").any() for t in found]) <= 0.16


def test_one_seed_borrows_the_scatter_of_the_others():
    pred = invent(1, methods=("A", "B", "C"), seeds=3, training=0.3)
    table = compare(
        pred[(pred["method"] != "C") | (pred["seed"] == 0)], "A", ["B", "C"], ["50-shot"], n_boot=40
    ).set_index("method")
    assert (
        table.loc["C", "seeds"] == 1
        and np.isnan(table.loc["C", "sd_seeds"])
        and table.loc["C", "se_training"] == pytest.approx(table.loc["B", "se_training"] * np.sqrt(3))
    )
    alone = compare(pred[pred["seed"] == 0], "A", ["B"], ["50-shot"], n_boot=40).iloc[0]
    assert (
        np.isnan(alone["se_training"])
        and alone["p_all"] == alone["p_boot"]
        and "one seed, which says nothing of training anew" in claim_sentence(alone)
    )


def twin(pred, of, name, seeds=None):
    "The same networks under another name, with some of the seeds"
    copy = pred[pred["method"] == of].assign(method=name)
    return pd.concat([pred, copy if seeds is None else copy[copy["seed"].isin(seeds)]])


@pytest.mark.parametrize("seed", range(5))
def test_a_network_under_a_second_name_changes_no_other_row(seed):
    pred = invent(seed, methods=("A", "B", "C"), seeds=3, training=0.3)
    alone, doubled = (
        compare(pred, "A", ["B", "C"], ["50-shot"], n_boot=40),
        compare(twin(twin(pred, "B", "D", [0]), "A", "E"), "A", ["B", "C", "D", "E"], ["50-shot"], n_boot=40)
    )
    pd.testing.assert_frame_equal(alone, doubled[doubled["method"].isin(["B", "C"])])
    d, e = doubled.set_index("method").loc["D"], doubled.set_index("method").loc["E"]
    assert (
        d["network"] == "B"
        and d["seeds"] == 3
        and d["p_holm"] == alone["p_holm"].iloc[0]
        and e["difference"] == 0
        and e["p_all"] == 1
    )


def test_rows_of_one_pretraining_are_compared_by_their_own_seeds_and_counted_once():
    pred = invent(4, methods=("A", "B", "C"), seeds=3, training=0.5)
    child = pred.assign(setting="50-shot")
    rng = np.random.default_rng(0)
    # adapted a little differently
    near = child[child["method"] == "B"].assign(method="D", score=lambda t: t["score"] + 1e-3 * rng.normal(size=len(t)))
    both = pd.concat([twin(pred.assign(setting="zero-shot"), "B", "D"), child, near])
    settings = ["zero-shot", "50-shot"]
    without, with_it = (
        compare(p, "A", others, settings, n_boot=40).query("setting == '50-shot'").set_index("method")
        for p, others in ((both[both["method"] != "D"], ["B", "C"]), (both, ["B", "C", "D"]))
    )
    # B and D together do not shrink it
    assert with_it.loc["B", "se_training"] == pytest.approx(without.loc["B", "se_training"], rel=0.3)
    own = compare_pairs(both, [(("B", st), ("D", st)) for st in settings], n_boot=40).iloc[1]
    assert (
        own["se_training"] == pytest.approx(own["sd_seeds"] / np.sqrt(3))
        and own["se_training"] < 0.1 * with_it.loc["B", "se_training"]
    )


def test_rules_have_no_seeds():
    pred = invent(2, methods=("A", "B", "Rules"), seeds=3, training=0.3)
    pred = pred[(pred["method"] != "Rules") | (pred["seed"] == 0)]
    found = compare(pred, "A", ["B", "Rules"], ["50-shot"], n_boot=40).set_index("method")
    assert found.loc["Rules", "seeds"] == 3 and found.loc["Rules", "se_training"] == pytest.approx(
        found.loc["B", "se_training"] / np.sqrt(2)
    )
    moved = pd.concat([pred, pred.assign(setting="full", score=pred["score"] + 0.1 * pred["truth"])])
    alone = compare_pairs(moved, [(("Rules", "full"), ("Rules", "50-shot"))], n_boot=40).iloc[0]
    assert (
        alone["se_training"] == 0
        and alone["p_all"] == alone["p_boot"]
        and "nothing is trained" in claim_sentence(alone)
    )


def test_scatter_can_be_taken_from_methods_beside():
    pred = invent(3, methods=("A", "B", "C"), seeds=3, training=0.4)
    few = pred[(pred["method"] != "B") | (pred["seed"] == 0)]
    assert np.isnan(compare(few[few["method"] != "C"], "A", ["B"], ["50-shot"], n_boot=40)["se_training"].iloc[0])
    beside = compare(few, "A", ["B"], ["50-shot"], n_boot=40, beside=["C"])
    assert (
        beside["method"].tolist() == ["B"]
        and beside["se_training"].iloc[0] > 0
        and "trained once" in claim_sentence(beside.iloc[0])
    )
    own = compare_pairs(pred, [(("A", "50-shot"), ("B", "50-shot"))], n_boot=40, pool=False).iloc[0]
    assert own["se_training"] == pytest.approx(own["sd_seeds"] / np.sqrt(3))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda b: b.assign(truth=1 - b["truth"]), "not scored on the same records"),
        (lambda b: b[b["record_id"] != "r0"], "not scored on the same records"),
        (lambda b: b.assign(patient_id="p" + b["record_id"]), "not scored on the same records"),
        (lambda b: b.assign(seed=b["seed"] + 10), "no seed in common"),
        (
            lambda b: b[(b["seed"] == 0) | (b["record_id"] != "r0")],
            "seeds of B at 50-shot were not scored on the same records"
        ),
    ],
)
def test_what_cannot_be_paired_is_refused(change, message):
    pred = invent(2)
    with pytest.raises(PeaceError, match=message):
        compare(
            pd.concat([pred[pred["method"] == "A"], change(pred[pred["method"] == "B"])]), "A", ["B"], ["50-shot"],
            n_boot=10
        )


def test_what_has_no_label_to_score_is_left_out():
    pred = invent(2, methods=("A", "B", "C"))
    empty = pred.assign(truth=pred["truth"].where(pred["method"] != "B", 0.0))
    assert compare(empty, "A", ["B", "C"], ["50-shot"], n_boot=10)["method"].tolist() == ["C"]
    with pytest.raises(PeaceError, match="no label of B"): make_cell(frames(empty, "B"), "B", "50-shot", 10)


def test_one_patient_proves_nothing():
    pred = invent(2).assign(patient_id="p0")
    found = compare(pred[pred["seed"] == 0], "A", ["B"], ["50-shot"], n_boot=20).iloc[0]
    assert (
        found["verdict"] == "not tested"
        and found["few"] == found["labels"]
        and claim_sentence(found) == "A and B were not compared."
    )


@pytest.mark.parametrize("seed", range(20))
def test_holm_against_its_definition(seed):
    p = np.random.default_rng(seed).random(int(seed + 1)) ** 3
    order = np.argsort(p)
    expected, worst = np.empty(len(p)), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        expected[i] = worst
    np.testing.assert_allclose(holm(p), expected)


def test_an_empty_comparison_is_a_table_with_columns():
    found = compare(invent(0), "PEACE", ["B"], ["50-shot"])
    assert (
        not len(found) and {"difference", "p_holm", "verdict"} <= set(found) and not len(compare_pairs(invent(0), []))
    )


def test_words_follow_numbers():
    row = {
        "reference": "PEACE", "method": "DANN", "setting": "full", "difference": 0.02, "lo": 0.01, "hi": 0.03,
        "lo_all": 0.005, "hi_all": 0.035, "p_holm": 0.02, "seeds": 3, "se_training": 0.01, "verdict": "ahead"
    }
    assert claim_sentence(row).startswith("PEACE is ahead of DANN with all training children: +2.0 points")
    assert "not distinguishable" in claim_sentence(
        {**row, "verdict": "not distinguishable"}
    ) and "ahead" not in claim_sentence({**row, "verdict": "not distinguishable"})
    assert claim_sentence({**row, "verdict": "behind", "difference": -0.02}).startswith("PEACE is behind DANN")


def test_broken_files_end_in_a_sentence(tmp_path):
    read = Scores(tmp_path, [("A", 0)])
    with pytest.raises(PeaceError, match="does not exist"): read("A", "full")
    place = tmp_path / "transfer" / "A" / "seed0" / "predictions.parquet"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"PAR1 no")
    with pytest.raises(PeaceError, match="is not a file of predictions"): read("A", "full")


def test_every_claim_can_be_judged():
    claims, reported = pd.read_csv(ROOT / "paper" / "claims.csv", dtype=str, keep_default_na=False), load_reported()
    known = {m for members in GROUPS.values() for m in members} | set(ABLATIONS)
    assert not claims["id"].duplicated().any() and set(claims["rule"]) <= {"difference", "largest", "value"}
    reads = {"zero-shot", "50-shot", "full", "ptbxl", ""}
    both_ways = {f"{setting}, {way}" for setting in ("zero-shot", "full") for way in ("cropped", "squeezed")}
    for c in claims.itertuples():
        assert {c.method_a, *c.method_b.split()} <= known, c.id
        # a claim of our own is about the ten seconds; the preprint says nothing of them
        assert {c.setting_a, c.setting_b} <= (both_ways if c.id.startswith("ours-") else reads), c.id
        assert (c.rule == "value") == (c.direction == "") and c.direction in {"ahead", "behind", ""}, c.id
    rows = {"PEACE": "full", **ABLATIONS}
    # a claim about numbers that are known must have its direction from them
    for c in claims.query("rule == 'difference'").itertuples():
        if c.method_b in ABLATIONS and rows[c.method_b]:
            table, key = (
                reported["table_ablation"],
                {"zero-shot": "zero_shot", "50-shot": "50_shot", "full": "full"}[c.setting_a]
            )
            assert table["full"][key] > table[rows[c.method_b]][key], c.id
        elif c.method_b not in ABLATIONS and c.method_a != c.method_b:
            from peace_nb.pipeline.tables import reported_auroc
            a, b = (reported_auroc(m, c.setting_a, "v2", reported) for m in (c.method_a, c.method_b))
            assert b is None or a > b, c.id


def test_groups_and_order():
    order = method_order([*ABLATIONS, "PEACE", "Random", "MERL@resnet18", "MERL", "PEACE+12lead"])
    assert (
        order[:4] == ["Random", "MERL", "MERL@resnet18", "PEACE"]
        and order[-1] == "PEACE+12lead"
        and {method_group(m) for m in ABLATIONS} == {"ablation"}
    )
