"""A build compared with its reference: when it is identical, agrees or differs, and what a faulty folder says."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT
from peace_nb.evaluation.networks import stand_ins
from peace_nb.files import write_json
from peace_nb.pipeline.reference import (
    FAMILY,
    JUDGED,
    MEASURED_IN,
    SPREAD,
    compare_cells,
    compare_tables,
    compare_with_reference,
    is_borderline,
    is_fact,
    judge,
    macro_aurocs,
    not_trained,
    read_spread,
    report_reference,
    row_keys,
    seed_spread,
    spread_of,
    turned,
    verdicts,
    write_reference,
    write_spread,
)
from peace_nb.pipeline.tables import save_table
from peace_nb.settings import PeaceError

METHODS = ("Random", "Rules", "DANN", "PEACE")
SETTINGS = ("adult", "zero-shot", "full")
KEPT = ROOT / "paper" / "reference"


def build(
    folder,
    methods=METHODS,
    moved=None,
    packages=None,
    precision="bf16",
    processor="A",
    p=0.02,
    verdict="ahead",
    claim="agrees",
    claim_p=0.03,
    data=None,
    commit="0123456789abcdef",
    **settings,
):
    "A build folder as the paper leaves one; `moved` adds points to the macro AUROC of (method, setting)"
    tables, moved = folder / "tables", moved or {}
    rows = [
        {
            "method": m,
            "setting": s,
            "label": label,
            "seeds": 1,
            "n_pos": 12,
            "patients": 300,
            "auroc": 0.7 + 0.05 * METHODS.index(m) + moved.get((m, s), 0) / 100 * (label == "macro"),
            "scored": True,
            "network": m,
        }
        for m in methods
        for s in SETTINGS
        for label in ("AF", "macro")
    ]
    save_table(pd.DataFrame(rows), tables / "table_2_full.csv")
    save_table(
        pd.DataFrame(
            [
                {"method": m, "children, full": f"{70 + 5 * METHODS.index(m):.1f} (68.1-72.3) | - | -", "n": 1200}
                for m in methods
            ]
        ),
        tables / "table_2_transfer.csv",
    )
    save_table(
        pd.DataFrame(
            [
                {"setting": s, "method": m, "difference": 0.01, "p_holm": p, "verdict": verdict}
                for s in SETTINGS
                for m in methods
                if m != "PEACE"
            ]
        ),
        tables / "table_5_full.csv",
    )
    save_table(
        pd.DataFrame(
            [
                {
                    "id": "one",
                    "tested by": "Table 5",
                    "what came out": f"PEACE is ahead of DANN: +1.0 (+0.1 to +2.0; corrected p = {claim_p:.3f}).",
                    "verdict": claim,
                }
            ]
        ),
        tables / "table_7_claims.csv",
    )
    made = {
        "profile": "demo",
        "note": "Data: simulated cohorts.",
        "commit": commit,
        "modified": False,
        "data": data or {"child": "f00d"},
        "python": "3.11.9",
        "packages": packages or {"torch": "2.13.0"},
        "processor": processor,
        "amx": precision == "bf16",
        "steps": [
            {
                "step": "table-2",
                "threads": 1,
                "settings": {"methods": list(methods), "bootstrap": 100, "precision": "auto", **settings},
            }
        ],
    }
    write_json(folder / "provenance.json", made)
    write_json(
        folder / "models" / "PEACE" / "seed0" / "run" / "result.json",
        {"key": {"config": {"mixed_precision": precision}}},
    )
    return folder


@pytest.fixture
def kept(tmp_path):
    "A reference, with the spread between seeds of the real study"
    write_reference("demo", build(tmp_path / "first"), tmp_path / "reference" / "demo" / "peace")
    shutil.copy(KEPT / SPREAD, tmp_path / "reference" / SPREAD)
    return tmp_path


def compared(kept, **kwargs):
    return compare_with_reference("demo", build(kept / "again", **kwargs), kept / "reference" / "demo" / "peace")


def changed(kept, stem, edit, **kwargs):
    "The outcome after a table was changed"
    again = build(kept / "again", **kwargs)
    place = again / "tables" / f"{stem}.csv"
    edit(pd.read_csv(place, dtype=str, keep_default_na=False)).to_csv(place, index=False)
    return compare_with_reference("demo", again, kept / "reference" / "demo" / "peace")


# --- the three words


def test_the_same_is_identical(kept):
    outcome = compared(kept)
    assert (
        outcome.status == "identical"
        and outcome.sentence.startswith("Identical:")
        and "digit for digit" in outcome.sentence
        and outcome.tables == 4
    )
    assert outcome.cells == 24 * 9 + 4 * 3 + 9 * 5 + 4 and "Next: nothing" in outcome.sentence
    assert {p.name for p in (kept / "reference" / "demo" / "peace").iterdir()} == {
        "table_2_full.csv",
        "table_2_transfer.csv",
        "table_5_full.csv",
        "table_7_claims.csv",
        "versions.json",
    }


def test_another_machine_with_the_same_digits_is_identical_and_named(kept):
    outcome = compared(kept, processor="B")
    assert outcome.status == "identical" and "processor: A there, B here" in outcome.sentence


def test_rounding_of_one_network_agrees(kept):
    outcome = compared(kept, moved={("DANN", s): d for s, d in zip(SETTINGS, (0.09, -0.22, 0.03))})
    assert outcome.status == "agrees" and outcome.judged.rms["DANN"] < 0.5 and outcome.judged.rms["PEACE"] == 0
    assert (
        "DANN, zero-shot: 80.0 there, 79.8 here" in outcome.sentence
        and "equal digits were to be expected" in outcome.sentence
        and "Next: nothing" in outcome.sentence
    )


def test_a_machine_without_bf16_agrees_and_is_named(kept):
    outcome = compared(kept, moved={("PEACE", "full"): 0.4, ("DANN", "adult"): -0.3}, precision="no", processor="B")
    assert outcome.status == "agrees" and "equal digits" not in outcome.sentence
    for words in ("precision: bf16 there, no here", "processor: A there, B here", "amx: True there, False here"):
        assert words in outcome.sentence
    assert (
        json.loads((kept / "reference" / "demo" / "peace" / "versions.json").read_text())["environment"]["precision"]
        == "bf16"
    )


def test_the_setting_of_precision_is_no_other_setting(kept):
    again = build(kept / "again", precision="no")
    made = json.loads((again / "provenance.json").read_text())
    made["steps"][0]["settings"]["precision"] = "no"
    write_json(again / "provenance.json", made)
    assert compare_with_reference("demo", again, kept / "reference" / "demo" / "peace").status == "identical"


@pytest.mark.parametrize(
    "moved, words",
    [
        (
            {(m, s): 1.7 for m in METHODS if m != "Rules" for s in SETTINGS},
            "networks that another seed does not explain|all networks together",
        ),
        ({("DANN", s): 2.2 for s in SETTINGS}, "DANN 2."),
        ({("DANN", "full"): 4.5}, "DANN, full: 80.0 there, 84.5 here"),
        ({("Rules", "full"): 0.3}, "networks without training"),
    ],
)
def test_what_seeds_do_not_explain_differs(kept, moved, words):
    outcome = compared(kept, moved=moved)
    assert (
        outcome.status == "differs"
        and any(w in outcome.sentence for w in words.split("|"))
        and "seed spreads (" in outcome.sentence
        and "Next: build once more" in outcome.sentence
    )


def test_a_seed_explains_one_cell_by_a_point_and_rules_round(kept):
    assert compared(kept, moved={("DANN", "full"): 1.5, ("Rules", "full"): 0.05}).status == "agrees"


# --- facts


@pytest.mark.parametrize(
    "stem, edit, said",
    [
        (
            "table_2_transfer",
            lambda t: t[t["method"] != "DANN"],
            "table_2_transfer, DANN: a row there, no such row here",
        ),
        ("table_2_full", lambda t: t.replace({"label": {"AF": "AFIB"}}), "no such row here"),
        ("table_2_full", lambda t: t.assign(n_pos="13"), "n_pos: 12 there, 13 here"),
        ("table_2_full", lambda t: t.assign(scored="False"), "scored: True there, False here"),
        ("table_2_full", lambda t: t.assign(network="KED"), "network"),
        ("table_2_transfer", lambda t: t.rename(columns={"n": "records"}), "columns"),
        ("table_2_transfer", lambda t: t.assign(**{"children, full": "-"}), "70.0 (68.1-72.3) | - | - there, - here"),
    ],
)
def test_a_lost_row_a_changed_label_or_count_differs(kept, stem, edit, said):
    outcome = changed(kept, stem, edit)
    assert outcome.status == "differs" and said in outcome.sentence and outcome.faults


def test_words_intervals_and_p_values_are_not_judged(kept):
    outcome = changed(
        kept,
        "table_2_transfer",
        lambda t: t.assign(**{"children, full": [v.replace("68.1", "61.0") for v in t["children, full"]]}),
    )
    assert outcome.status == "agrees" and not outcome.faults and "more than half a point apart" in outcome.sentence
    assert (
        changed(kept, "table_7_claims", lambda t: t.assign(**{"what came out": "Other words, p = 0.900."})).status
        == "agrees"
    )


def test_a_table_that_is_gone_differs(kept):
    again = build(kept / "again")
    (again / "tables" / "table_2_full.csv").unlink()
    assert (
        "table_2_full, whole table: a table there, no such table here"
        in compare_with_reference("demo", again, kept / "reference" / "demo" / "peace").sentence
    )


def test_every_cell_of_a_table_of_cohorts_is_a_fact(kept):
    for folder in (kept / "first", kept / "again"):
        save_table(
            pd.DataFrame({"cohort": ["adults"], "age, years": ["63.0 (51.0-74.0)"]}),
            folder / "tables" / "table_1_cohorts.csv",
        )
    write_reference("demo", kept / "first", kept / "reference" / "demo" / "peace")
    assert compared(kept).status == "identical"
    assert (
        changed(kept, "table_1_cohorts", lambda t: t.assign(**{"age, years": "63.1 (51.0-74.0)"})).status == "differs"
    )


# --- verdicts


@pytest.mark.parametrize(
    "p, here, fine",
    [
        (0.02, 0.06, True),
        (0.02, 0.19, True),
        (0.011, 0.2, True),
        (0.02, 0.3, False),
        (0.004, 0.06, False),
        (0.02, 0.03, False),
    ],
)
def test_a_verdict_may_turn_near_the_limit_only(kept, p, here, fine):
    write_reference("demo", build(kept / "first", p=p), kept / "reference" / "demo" / "peace")
    outcome = compared(kept, p=here, verdict="not distinguishable")
    assert (
        outcome.status == ("agrees" if fine else "differs")
        and len(outcome.turned) == 9
        and outcome.turned["borderline"].all() == fine
    )
    assert ("but for 9 borderline (" if fine else "9 verdicts changed") in outcome.sentence


def test_a_claim_that_turned_differs_unless_its_p_is_near_the_limit(kept):
    near, far = (
        compared(kept, claim="not distinguishable", claim_p=0.08),
        compared(kept, claim="not distinguishable", claim_p=0.8),
    )
    assert (
        near.status == "agrees"
        and "table_7_claims, one: agrees (p 0.030) there, not distinguishable (p 0.080) here" in near.sentence
    )
    assert far.status == "differs" and "1 verdict changed" in far.sentence
    assert compared(kept, claim="disagrees", claim_p=0.03).status == "differs", "from ahead to behind is no borderline"


def test_borderline_looks_at_those_that_crossed():
    assert (
        is_borderline((0.04, 0.9), (0.06, 1.0))
        and not is_borderline((0.04, 0.001), (0.06, 0.3))
        and not is_borderline((0.3,), (0.4,))
        and not is_borderline((), ())
    )


def test_sentences_repeat_verdicts_and_are_not_counted_twice():
    found = verdicts(KEPT / "demo" / "peace")
    assert (
        set(found.index.get_level_values("table"))
        == {"table_4_full", "table_5_full", "table_7_claims", "table_13_age_aware"}
        and found["p"].map(len).gt(0).mean() > 0.9
    )
    assert turned(found, found).empty


# --- the rule, by simulation on the layout of demo


@pytest.fixture(scope="module")
def layout():
    "Demo's macro AUROCs, the spread between seeds, and a function that trains all networks again"
    demo, spread = macro_aurocs(KEPT / "demo" / "peace"), read_spread(KEPT / "demo" / "peace")
    unit = np.array([spread_of(s, spread)[0] for s in demo["setting"]]) * np.sqrt(2 / demo["seeds"])
    twins = demo.groupby(["setting", "seeds", "auroc"]).ngroup()

    def again(amount, rng, points=0.0, of=None):
        moved = amount * unit * rng.normal(size=len(demo))[twins] + points * (demo["network"].isin(of) if of else 1)
        return demo.assign(auroc=demo["auroc"] + moved * demo["network"].ne("Rules"))

    def objections(runs=150, **kwargs):
        rng = np.random.default_rng(7)
        return np.mean([not judge(demo, again(rng=rng, **kwargs), spread, ["Rules"]).fine for _ in range(runs)])

    return demo, spread, objections


def test_another_seed_and_rounding_pass(layout):
    demo, spread, objections = layout
    assert len(demo) > 80 and judge(demo, demo, spread).fine
    assert objections(amount=0.25) == 0 and objections(amount=0.5) == 0 and objections(amount=1.0) <= 0.12


def test_a_point_everywhere_or_two_points_in_one_network_are_seen(layout):
    _, _, objections = layout
    assert (
        objections(amount=0.25, points=1.0) > 0.95
        and objections(amount=1.0, points=1.0) > 0.9
        and objections(amount=0.25, points=-1.0) > 0.95
    )
    assert (
        objections(amount=0.25, points=2.0, of=["PEACE"]) == 1
        and objections(amount=1.0, points=2.0, of=["KED"]) > 0.6
        and objections(amount=0.25, points=2.5, of=["KED"]) > 0.95
    )


def test_single_seeds_of_the_same_network_agree_with_each_other(layout):
    "Means over three seeds move less than one seed does: the unit shrinks with the root of their number"
    demo, spread, _ = layout
    shifted = demo.assign(auroc=demo["auroc"] + 0.5)
    z = judge(demo, shifted, spread, ["Rules"]).cells.set_index(["network", "setting"])["z"]
    assert np.isclose(z["PEACE", "full"] / z["KED", "full"], np.sqrt(3)) and np.isclose(
        z["KED", "full"], 0.5 / spread.loc["full", "points"] / np.sqrt(2)
    )


def test_two_networks_with_equal_numbers_count_twice(layout):
    "In bench KED and LateFusion have one macro AUROC, to its last digit, and are two networks"
    demo, spread, _ = layout
    twice = pd.concat([demo, demo[demo["network"] == "PEACE"].assign(network="PEACE's equal")])
    more = (demo["network"] == "PEACE").sum()
    assert len(judge(twice, twice, spread).cells) == len(judge(demo, demo, spread).cells) + more


def test_a_network_has_one_name():
    "Of rows that are one network the first with most seeds names it, also where all have as many"
    prints = {("ECG-only", "adult"): {0: "a", 1: "b"}, ("DANN", "adult"): {0: "a", 1: "b"},
              ("MMD", "adult"): {0: "a"}, ("KED", "adult"): {0: "c", 1: "d"}}
    named = stand_ins(prints)
    assert {key[0]: of[0] for key, of in named.items()} == {
        "ECG-only": "ECG-only", "DANN": "ECG-only", "MMD": "ECG-only", "KED": "KED"
    }


def test_a_sentence_names_no_row():
    "The counts in a note may change with one borderline verdict; that is not a lost row"
    note = pd.DataFrame({"note": ["Of 46 comparisons of different networks PEACE is ahead in 16, behind in 3, and in 27 not distinguishable."]})
    assert row_keys(note) == [] and row_keys(pd.DataFrame({"method": ["PEACE"], "verdict": ["ahead"]})) == ["method"]


# --- the spread between seeds


def test_the_kept_spread_is_that_of_bench():
    kept, fresh = (
        read_spread(KEPT / "demo" / "peace"),
        seed_spread(pd.read_csv(KEPT / MEASURED_IN / "peace" / "table_2_full.csv")),
    )
    assert (kept[["points", "df", "networks"]] == fresh).all(axis=None)
    commit = json.loads((KEPT / MEASURED_IN / "peace" / "versions.json").read_text())["commit"]
    assert kept["source"].eq(f"bench/peace/table_2_full.csv, commit {commit[:10]}").all()
    assert ((kept["points"] > 0.3) & (kept["points"] < 1.5)).all() and (kept["df"] >= 30).all()


def test_the_spread_is_the_pooled_standard_deviation_of_networks():
    rng = np.random.default_rng(1)
    scores = rng.normal(0.8, 0.007, size=(400, 5))
    full = pd.DataFrame(
        {
            "label": "macro",
            "setting": "full",
            "network": [f"N{i}" for i in range(400)],
            "seeds": 5,
            "sd": scores.std(1, ddof=1),
        }
    )
    assert (
        np.isclose(seed_spread(full).loc["full", "points"], 0.7, atol=0.03)
        and seed_spread(full).loc["full", "df"] == 1600
    )


def test_bench_brings_the_spread_along_and_leaves_other_studies_alone(tmp_path):
    folder = tmp_path / "reference" / "bench" / "peace"
    first = build(tmp_path / "first")
    full = pd.read_csv(first / "tables" / "table_2_full.csv").assign(seeds=3, sd=0.006)
    save_table(full, first / "tables" / "table_2_full.csv")
    write_json(folder.parents[1] / "nothing.json", {})
    pd.DataFrame(
        {"study": ["other"], "setting": ["full"], "points": [9.0], "df": [4], "networks": [2], "source": ["elsewhere"]}
    ).to_csv(folder.parents[1] / SPREAD, index=False)
    write_reference("bench", first, folder)
    kept = pd.read_csv(folder.parents[1] / SPREAD)
    assert (
        set(kept["study"]) == {"other", "peace"}
        and kept[kept["study"] == "peace"]["points"].eq(0.6).all()
        and kept.iloc[0]["points"] == 9.0
    )
    write_reference("bench", first, folder)
    assert len(pd.read_csv(folder.parents[1] / SPREAD)) == len(kept)
    save_table(full.assign(seeds=1, sd=np.nan), folder / "table_2_full.csv")
    with pytest.raises(PeaceError, match="no network of several seeds"):
        write_spread(folder)


def test_without_a_spread_nothing_is_judged(kept):
    (kept / "reference" / SPREAD).unlink()
    assert compared(kept).status == "identical"
    outcome = compared(kept, moved={("PEACE", "full"): 0.1})
    assert outcome.status == "not judged" and SPREAD in outcome.sentence
    with pytest.raises(PeaceError, match="'half-shot'"):
        spread_of("half-shot", read_spread(KEPT / "demo" / "peace"))


# --- cells and rows


@pytest.mark.parametrize(
    "there, here, beyond",
    [
        ("1200", "1201", 1),
        ("ahead", "n.d.", 0),
        ("72.5", "72.5 *", 0),
        ("<0.001", "0.002", 0),
        ("0.7251", "0.7300", 0),
        ("0.7251", "0.7310", 1),
        ("n/a", "72.5", 1),
        ("", "", 0),
        ("72.5", "", 1),
        ("-0.2", "0.1", 0),
        ("72.5 (70.1-74.8)", "73.5 (70.1-76.8)", 2),
    ],
)
def test_cells(there, here, beyond):
    assert compare_cells(there, here)[1] == beyond == compare_cells(here, there)[1]


def test_facts_are_known_by_their_column():
    assert all(is_fact(c) for c in ("n", "n_pos", "patients", "labels", "network", "reason")) and not any(
        is_fact(c) for c in ("auroc", "place", "verdict", "name", "p_holm", "at least 2 x chance")
    )


def test_rows_are_matched_by_name():
    table = pd.DataFrame(
        {"method": ["A", "A", "B"], "setting": ["x", "y", "x"], "auroc": ["0.7000", "0.8000", "0.9000"]}
    )
    assert (
        row_keys(table) == ["method", "setting"]
        and row_keys(table[["auroc"]]) == []
        and row_keys(table.assign(setting="x")) == []
    )
    assert (
        compare_tables(table, table.iloc[::-1]).changed == 0
        and compare_tables(table, table.assign(auroc=["0.7100", "0.8000", "0.9000"])).beyond == 1
    )


def test_judged_tables_exist_in_the_references_and_rules_are_not_trained():
    for profile in ("demo", "bench"):
        for stem, column in JUDGED:
            assert column in pd.read_csv(KEPT / profile / "peace" / f"{stem}.csv", nrows=1)
    assert not_trained(["Rules", "PEACE", "KED@xresnet1d101", "MERL+long", "gone"]) == ["Rules"]


# --- what is not compared


def test_fewer_methods_are_compared_as_far_as_they_go(kept):
    few = ("DANN", "PEACE")
    outcome = compared(kept, methods=few)
    assert (
        outcome.status == "identical"
        and outcome.tables == 2
        and "Random, Rules run on one side only" in outcome.sentence
        and "table_5_full" in outcome.sentence
        and FAMILY
    )
    assert compared(kept, methods=few, moved={("DANN", s): 3 for s in SETTINGS}).status == "differs"
    outcome = compared(kept, methods=few, moved={("DANN", "full"): 0.1})
    assert outcome.status == "agrees" and "no verdict is compared" in outcome.sentence
    write_reference(
        "demo", build(kept / "few", methods=few, lsbc_weight=0.5), kept / "reference" / "demo" / "peace"
    )  # and the other way round, with a setting that one method alone reads
    assert compared(kept).status == "identical"


def test_other_settings_are_not_compared(kept):
    outcome = compared(kept, bootstrap=50)
    assert (
        outcome.status == "other settings"
        and "bootstrap: 100 there, 50 here" in outcome.sentence
        and "Next:" in outcome.sentence
    )


def test_a_table_and_a_setting_younger_than_the_reference_are_told_and_break_nothing(kept):
    assert "Without a reference" not in compared(kept).sentence
    again = build(kept / "again", length_seeds=2)
    save_table(pd.DataFrame([{"label": "STACH", "kept": 0.1}]), again / "tables" / "table_16_labels.csv")
    outcome = compare_with_reference("demo", again, kept / "reference" / "demo" / "peace")
    assert outcome.status == "identical" and outcome.tables == 4
    assert "Without a reference so far, and not compared: table_16_labels." in outcome.sentence
    assert "The reference knows nothing of the settings length_seeds." in outcome.sentence


def test_what_to_do_follows_from_what_is_different(kept):
    far = {("DANN", s): 3 for s in SETTINGS}
    assert (
        "Next: look at the data first: child "
        in compared(kept, moved=far, data={"child": "beef", "real-ptb-xl": "1"}).sentence
    )
    assert (
        "Next: install the versions of constraints.txt (torch)"
        in compared(kept, moved=far, packages={"torch": "2.14.0"}).sentence
    )
    assert "Next: if the code was changed" in compared(kept, moved=far, commit="f" * 40).sentence
    assert "provenance.json" in compared(kept, moved=far).sentence


def test_an_old_reference_that_does_not_tell_its_processor(kept):
    place = kept / "reference" / "demo" / "peace" / "versions.json"
    was = json.loads(place.read_text())
    for key in ("processor", "amx", "precision"):
        del was["environment"][key]
    write_json(place, was)
    outcome = compared(kept, moved={("PEACE", "full"): 0.1})
    assert (
        outcome.status == "agrees"
        and "The reference does not tell its processor and precision (here: A, bf16)." in outcome.sentence
        and "to be expected" not in outcome.sentence
    )


def test_a_table_without_samples_is_left_out(kept):
    save_table(pd.DataFrame({"note": ["No real records at hand."]}), kept / "first" / "tables" / "table_3_sim2real.csv")
    write_reference("demo", kept / "first", kept / "reference" / "demo" / "peace")
    again = build(kept / "again")
    save_table(pd.DataFrame({"label": ["AF"], "auroc": [0.9]}), again / "tables" / "table_3_sim2real.csv")
    outcome = compare_with_reference("demo", again, kept / "reference" / "demo" / "peace")
    assert outcome.status == "identical" and "table_3_sim2real (real samples on one side only)" in outcome.sentence


def test_no_reference_and_no_build(tmp_path, capsys):
    assert (
        report_reference("demo", build(tmp_path / "a"), tmp_path / "none").status == "no reference"
        and "no reference" in capsys.readouterr().out
    )
    (tmp_path / "a" / "provenance.json").unlink()
    with pytest.raises(PeaceError, match="build the paper first"):
        write_reference("demo", tmp_path / "a", tmp_path / "none")


def test_a_reference_comes_from_a_commit_and_forgets_old_tables(kept):
    folder = kept / "reference" / "demo" / "peace"
    made = json.loads((kept / "first" / "provenance.json").read_text(encoding="utf-8"))
    write_json(kept / "first" / "provenance.json", {**made, "modified": True})
    with pytest.raises(PeaceError, match="must come from a commit"):
        write_reference("demo", kept / "first", folder)
    write_json(kept / "first" / "provenance.json", made)
    (kept / "first" / "tables" / "table_5_full.csv").unlink()
    write_reference("demo", kept / "first", folder)
    assert not (folder / "table_5_full.csv").exists()


def test_a_row_that_stands_by_an_absent_network_is_left_out(kept):
    "Before adaptation DANN is ECG-only, shown with its seeds; a run without ECG-only shows fewer seeds"

    def full(folder, network, value, peace=0.8):
        first = {"method": "DANN", "seeds": 3, "network": network, "auroc": value}
        second = {"method": "PEACE", "seeds": 1, "network": "PEACE", "auroc": peace}
        table = pd.DataFrame([first, second]).assign(setting="zero-shot", label="macro")
        save_table(table, folder / "table_2_full.csv")

    full(kept / "reference" / "demo" / "peace", "Random", 0.70)
    few = build(kept / "few", methods=("Rules", "DANN", "PEACE"))
    full(few / "tables", "DANN", 0.75)
    outcome = compare_with_reference("demo", few, kept / "reference" / "demo" / "peace")
    assert outcome.status == "identical" and "DANN, shown with the seeds of those, left out too" in outcome.sentence
    full(few / "tables", "DANN", 0.75, 0.9)
    assert compare_with_reference("demo", few, kept / "reference" / "demo" / "peace").status == "differs"
