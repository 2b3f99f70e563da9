"""A build held against its reference: what counts as the same, what does not, and what a faulty folder says."""
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from peace_nb.pipeline.reference import FAMILY, POINTS, compare_cells, compare_tables, hold, report_reference, row_keys, write_reference
from peace_nb.pipeline.tables import save_table
from peace_nb.files import write_json
from peace_nb.settings import PeaceError

METHODS = ("Random", "DANN", "PEACE")


def build(folder, methods=METHODS, shift=0.0, packages=None, **settings):
    "A build folder as the paper leaves one: two tables of text, one of numbers, and the record"
    tables = folder / "tables"
    level = {m: 0.7 + 0.05 * METHODS.index(m) + shift for m in methods}
    save_table(pd.DataFrame([{"method": m, "children, full": f"{100 * v:.1f} ({100 * v - 2:.1f}-{100 * v + 2:.1f}) | - | -", "n": 1200} for m, v in level.items()]), tables / "table_2_transfer.csv")
    save_table(pd.DataFrame([{"method": m, "setting": st, "label": l, "auroc": v, "p_x": 0.5, "scored": True} for m, v in level.items() for st in ("adult", "full") for l in ("AF", "macro")]), tables / "table_2_full.csv")
    save_table(pd.DataFrame([{"PEACE against": m, "full": "+1.0, 0.020, ahead"} for m in methods if m != "PEACE"]), tables / "table_5_statistics.csv")
    made = {"profile": "demo", "note": "Data: simulated cohorts.", "commit": "0123456789abcdef", "modified": False, "data": {"child": "f00d"}, "python": "3.11.9", "packages": packages or {"torch": "2.13.0"},
            "steps": [{"step": "table-2", "threads": 1, "settings": {"methods": list(methods), "bootstrap": 100, **settings}}]}
    write_json(folder / "provenance.json", made)
    return folder


@pytest.fixture
def kept(tmp_path):
    "A build and its reference"
    write_reference("demo", build(tmp_path / "first"), tmp_path / "reference")
    return tmp_path


def held(kept, **kwargs): return hold("demo", build(kept / "again", **kwargs), kept / "reference")


def test_the_same_is_the_same(kept):
    outcome = held(kept)
    assert outcome.status == "reproduced" and "digit for digit" in outcome.sentence and outcome.tables == 3
    assert outcome.numbers == 3 * (3 + 1) + 12 * 2 + 2 * 2
    assert len({p.name for p in (kept / "reference").iterdir()}) == 4


def test_another_machine_may_differ_by_half_a_point_and_no_more(kept):
    near, far = held(kept, shift=0.004, packages={"torch": "2.14.0"}), held(kept, shift=0.006, packages={"torch": "2.14.0"})
    assert near.status == "reproduced" and f"within {POINTS} points" in near.sentence and "torch: 2.13.0 there, 2.14.0 here" in near.sentence
    assert far.status == "differs" and far.sentence.startswith("Not reproduced") and {d[0] for d in far.differs} == {"table_2_transfer", "table_2_full"}


def test_the_same_machine_may_not_differ_at_all(kept):
    outcome = held(kept, shift=0.001)
    assert outcome.status == "differs" and not outcome.differs and "should be equal" in outcome.sentence


@pytest.mark.parametrize("there, here, fine", [("1200", "1201", False), ("ahead", "n.d.", False), ("72.5", "72.5 *", False), ("<0.001", "0.002", True), ("0.7251", "0.7300", True), ("0.7251", "0.7310", False),
                                               ("n/a", "72.5", False), ("", "", True), ("72.5", "", False), ("True", "False", False), ("-0.2", "0.1", True)])
def test_cells(there, here, fine):
    assert (compare_cells(there, here)[1] <= 1) is fine and (compare_cells(here, there)[1] <= 1) is fine


def test_fewer_methods_are_compared_as_far_as_they_go(kept):
    outcome = held(kept, methods=("DANN", "PEACE"))
    assert outcome.status == "reproduced" and outcome.tables == 2 and "Random run on one side only" in outcome.sentence and "table_5_statistics" in outcome.sentence and FAMILY
    assert held(kept, methods=("DANN", "PEACE"), shift=0.02).status == "differs"
    write_reference("demo", build(kept / "few", methods=("DANN", "PEACE"), lsbc_weight=0.5), kept / "reference")     # and the other way round, with a setting that one method alone reads
    assert held(kept).status == "reproduced"


def test_rows_and_tables_that_are_gone_are_missed(kept):
    again = build(kept / "again")
    wide = pd.read_csv(again / "tables" / "table_2_transfer.csv")
    save_table(wide[wide["method"] != "DANN"], again / "tables" / "table_2_transfer.csv")
    assert [d[1:] for d in hold("demo", again, kept / "reference").differs] == [("DANN", "", "a row", "no such row")]
    (again / "tables" / "table_2_full.csv").unlink()
    assert "no such table" in str(hold("demo", again, kept / "reference").differs)
    save_table(wide.rename(columns={"n": "records"}), again / "tables" / "table_2_transfer.csv")
    assert "columns" in str(hold("demo", again, kept / "reference").differs)


def test_other_settings_are_not_compared(kept):
    outcome = held(kept, bootstrap=50)
    assert outcome.status == "other settings" and "bootstrap: 100 there, 50 here" in outcome.sentence


def test_other_data_are_named(kept):
    again = build(kept / "again")
    made = json.loads((again / "provenance.json").read_text(encoding="utf-8"))
    write_json(again / "provenance.json", {**made, "data": {"child": "beef", "real-ptb-xl": "1"}})
    assert "by fingerprint: child." in hold("demo", again, kept / "reference").sentence


def test_a_table_without_samples_is_left_out(kept):
    save_table(pd.DataFrame({"note": ["No real records at hand."]}), kept / "first" / "tables" / "table_3_sim2real.csv")
    write_reference("demo", kept / "first", kept / "reference")
    again = build(kept / "again")
    save_table(pd.DataFrame({"label": ["AF"], "auroc": [0.9]}), again / "tables" / "table_3_sim2real.csv")
    outcome = hold("demo", again, kept / "reference")
    assert outcome.status == "reproduced" and "table_3_sim2real (real samples on one side only)" in outcome.sentence


def test_no_reference_and_no_build(tmp_path, capsys):
    assert report_reference("demo", build(tmp_path / "a"), tmp_path / "none").status == "no reference" and "no reference" in capsys.readouterr().out
    (tmp_path / "a" / "provenance.json").unlink()
    with pytest.raises(PeaceError, match="build the paper first"): write_reference("demo", tmp_path / "a", tmp_path / "none")


def test_a_reference_comes_from_a_commit_and_forgets_old_tables(kept):
    made = json.loads((kept / "first" / "provenance.json").read_text(encoding="utf-8"))
    write_json(kept / "first" / "provenance.json", {**made, "modified": True})
    with pytest.raises(PeaceError, match="must come from a commit"): write_reference("demo", kept / "first", kept / "reference")
    write_json(kept / "first" / "provenance.json", made)
    (kept / "first" / "tables" / "table_5_statistics.csv").unlink()
    write_reference("demo", kept / "first", kept / "reference")
    assert not (kept / "reference" / "table_5_statistics.csv").exists()
    shutil.rmtree(kept / "reference")


def test_a_row_that_stands_by_an_absent_network_is_left_out(kept):
    "Before adaptation DANN is ECG-only and shown with its seeds; a run without ECG-only shows fewer seeds, and that is no fault"
    full = lambda folder, network, value: save_table(pd.DataFrame({"method": ["DANN", "PEACE"], "setting": ["zero-shot"] * 2, "network": [network, "PEACE"], "auroc": [value, 0.8]}), folder / "table_2_full.csv")
    full(kept / "reference", "Random", 0.70)
    few = build(kept / "few", methods=("DANN", "PEACE"))
    full(few / "tables", "DANN", 0.75)
    outcome = hold("demo", few, kept / "reference")
    assert outcome.status == "reproduced" and "DANN, shown with the seeds of those, left out too" in outcome.sentence
    save_table(pd.DataFrame({"method": ["DANN", "PEACE"], "setting": ["zero-shot"] * 2, "network": ["DANN", "PEACE"], "auroc": [0.75, 0.9]}), few / "tables" / "table_2_full.csv")
    assert hold("demo", few, kept / "reference").status == "differs"


def test_rows_are_matched_by_name():
    table = pd.DataFrame({"method": ["A", "A", "B"], "setting": ["x", "y", "x"], "auroc": ["0.7000", "0.8000", "0.9000"]})
    assert row_keys(table) == ["method", "setting"] and row_keys(table[["auroc"]]) == [] and row_keys(table.assign(setting="x")) == []
    assert compare_tables(table, table.iloc[::-1])[2] == [] and np.isclose(compare_tables(table, table.assign(auroc=["0.7010", "0.8000", "0.9000"]))[1], 0.2)
