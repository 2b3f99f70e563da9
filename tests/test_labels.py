"Labels: real annotations, wrong input, and the language of reports beyond the examples of the notebook."
import ast
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from peace_nb.labels.aha import _finding_index, base_finding, labels_from_aha
from peace_nb.labels.reports import labels_from_report, read_line
from peace_nb.labels.scp import labels_from_scp
from peace_nb.labels.snomed import labels_from_snomed
from peace_nb.labels.space import LABELS, label_set
from peace_nb.labels.states import VOCABULARIES
from peace_nb.settings import PeaceError

SAMPLE = os.environ.get("PEACE_SAMPLE_DATA")
needs_sample = pytest.mark.skipif(
    not SAMPLE, reason="PEACE_SAMPLE_DATA is not set: the real annotation tables are not at hand"
)


def zzu_rows():
    files = ("AttributesDictionary.csv", "AttributesDictionary.rows50.csv")
    return pd.concat(pd.read_csv(Path(SAMPLE) / "zzu-pecg-sample" / f) for f in files).set_index("ECG_ID")


# ---------------------------------------------------------------- real vocabularies and annotations
@needs_sample
def test_every_row_of_the_real_finding_dictionary_is_accounted_for():
    real = pd.read_csv(Path(SAMPLE) / "zzu-pecg-sample" / "ECGCode.csv", keep_default_na=False)
    assert len(real) == 105
    for column, vocabulary in (("AHA(Category&Code)", "aha"), ("CHN(Category&Code)", "chn")):
        table, _ = _finding_index(vocabulary)
        for code, finding in zip(real[column], real["Description"]):
            key = base_finding(code) if code != "N/A" else finding.strip()
            assert key in table.index, (vocabulary, key)


@needs_sample
def test_every_real_scp_statement_is_accounted_for():
    real = pd.read_csv(Path(SAMPLE) / "ptb-xl-sample" / "scp_statements.csv", index_col=0)
    assert set(real.index) == set(VOCABULARIES["scp"].index)
    rhythm = set(real.index[real["rhythm"] == 1])
    assert rhythm == set(VOCABULARIES["scp"].query("kind == 'rhythm'").index)


@needs_sample
def test_real_zzu_rows_agree_between_both_vocabularies():
    rows = zzu_rows()
    aha, coverage = labels_from_aha(rows["AHA_code"], strict=True)
    chn, _ = labels_from_aha(rows["CHN_code"], vocabulary="chn")
    pd.testing.assert_frame_equal(aha, chn)
    assert coverage.unmatched.empty and coverage.unannotated == 0
    assert aha.loc["P01128_E02", ["STACH", "AE", "LVH", "RVH", "STDEV"]].tolist() == [1] * 5
    assert np.isnan(aha.loc["P00277_E01", "NORM"])                       # A2, "otherwise normal"
    assert aha.loc["P02215_E01", ["LVHV", "LVH"]].tolist() == [1, 0]     # high voltage in plain English


@needs_sample
def test_real_ptbxl_rows():
    t = pd.read_csv(Path(SAMPLE) / "ptb-xl-sample" / "ptbxl_database.csv", index_col="ecg_id")
    y, coverage = labels_from_scp(t["scp_codes"].map(ast.literal_eval), t["heart_axis"], strict=True)
    assert coverage.unmatched.empty and coverage.unannotated == 0
    plain = t["scp_codes"].map(ast.literal_eval).map(lambda d: d.get("NORM", 0))
    assert ((y["NORM"] == 1) == (plain >= 50)).all()
    assert y.loc[t["heart_axis"].isna(), ["RAD", "LAD"]].isna().to_numpy().all()
    assert (
        (y.loc[t["heart_axis"] == "ALAD", "LAD"] == 1).all()
        and y.loc[t["heart_axis"] == "LAD", "LAD"].isna().all()
        and (y.loc[t["heart_axis"] == "MID", "RAD"] == 0).all()
    )
    assert np.isnan(y.loc[386, "AFIB"])     # its text says fibrillation, its codes say nothing about rhythm
    assert y.loc[39, "LQT"] == 1 and np.isnan(y.loc[39, "QWAVE"])


# ---------------------------------------------------------------- wrong input
def test_unknown_codes_name_code_and_record():
    with pytest.raises(PeaceError, match="rec7.*ZZZ"):
        labels_from_scp(pd.Series([{"ZZZ": 100.0}], index=["rec7"]), strict=True)
    with pytest.raises(PeaceError, match="rec7.*123"):
        labels_from_snomed(pd.Series(["123"], index=["rec7"]), strict=True)
    with pytest.raises(PeaceError, match="rec7.*X1"):
        labels_from_aha(pd.Series(["'X1+Modifier308'"], index=["rec7"]), strict=True)
    y, coverage = labels_from_aha(pd.Series(["'X1'"], index=["rec7"]))
    assert coverage.unmatched.to_dict() == {"X1": 1} and coverage.summary()["statements not in the table"] == 1


def test_mistaken_arguments_end_in_one_sentence():
    with pytest.raises(PeaceError, match="literal_eval"): labels_from_scp(pd.Series(["{'NORM': 100.0}"]))
    with pytest.raises(PeaceError, match="heart_axis"):
        labels_from_scp(pd.Series([{"NORM": 100.0}]), pd.Series(["MID", "LAD"]))
    with pytest.raises(PeaceError, match="vocabulary"): labels_from_aha(pd.Series(["'A1'"]), vocabulary="AHA")
    with pytest.raises(PeaceError, match="paper9"): label_set("paper8")


@pytest.mark.parametrize(
    "mapping,empty",
    [
        (labels_from_aha, [None, np.nan, "", "Null", "''"]), (labels_from_scp, [None, np.nan, {}]),
        (labels_from_snomed, [None, np.nan, "", []]), (labels_from_report, [None, np.nan, [], ["", None, np.nan]])
    ],
)
def test_no_annotation_is_missing_not_negative(mapping, empty):
    y, coverage = mapping(pd.Series(empty, dtype=object))
    assert y.shape == (len(empty), 27) and y.isna().to_numpy().all() and coverage.unannotated == len(empty)
    y, _ = mapping(pd.Series([], dtype=object))
    assert y.shape == (0, 27)


def test_duplicate_and_odd_indices_survive():
    y, _ = labels_from_aha(pd.Series(["'C21'", "'C22'"], index=["same", "same"]))
    assert y["STACH"].tolist() == [1, 0] and list(y.index) == ["same", "same"]


# ---------------------------------------------------------------- rules between codes
def test_assertion_outranks_doubt_outranks_silence():
    y, _ = labels_from_aha(pd.Series(["'M161';'Abnormal Q wave'", "'M161'", "'C21'"]))
    assert y["QWAVE"][0] == 1 and np.isnan(y["QWAVE"][1]) and y["QWAVE"][2] == 0


@pytest.mark.parametrize("likelihood,want", [(0.0, 1), (15.0, np.nan), (35.0, np.nan), (50.0, 1), (100.0, 1)])
def test_scp_likelihood(likelihood, want):
    y, _ = labels_from_scp(pd.Series([{"LVH": likelihood, "SR": 0.0}]), pd.Series(["MID"]))
    np.testing.assert_equal(y["LVH"][0], want)


@given(
    st.lists(st.sampled_from(sorted(VOCABULARIES["aha"].index)), max_size=6),
    st.sampled_from(sorted(VOCABULARIES["aha"].index))
)
@settings(max_examples=60, deadline=None)
def test_one_more_finding_never_takes_a_label_away(codes, more):
    def pack(c): return ";".join(f"'{x}'" for x in c)
    before, after = (labels_from_aha(pd.Series([pack(c)]))[0].iloc[0] for c in (codes, codes + [more]))
    lost = set(before.index[before == 1]) - set(after.index[after == 1])
    assert lost <= {"AVB23"}    # flutter beside a block makes the block a possible conduction ratio


# ---------------------------------------------------------------- the language of reports
ASSERTED = {
    "Sinus tachycardia with occasional PVCs": "STACH PVC", "Marked sinus bradycardia": "SBRAD",
    "RBBB with left anterior fascicular block": "RBBB LAFB", "Incomplete RBBB": "IRBBB",
    "Right bundle branch block": "RBBB", "Minimal voltage criteria for LVH, may be normal variant": "LVHV",
    "LVH with secondary repolarization abnormality": "LVH STDEV TABN",
    "Inferior/lateral T wave changes may be due to myocardial ischemia": "TABN",
    "Inferior ST elevation, consider acute infarct": "STDEV", "1st degree A-V block": "AVB1",
    "Second degree A-V block, Mobitz type I": "AVB23",
    "Left axis deviation, consider left anterior fascicular block": "LAD",
    "No ST elevation, T wave inversion present": "TABN", "Low QRS voltages in precordial leads": "LOWV",
    "Prolonged QT interval": "LQT", "QTc is prolonged": "LQT", "Wolff-Parkinson-White pattern": "WPW",
    "Right ventricular hypertrophy": "RVH", "Biatrial enlargement": "AE",
    "Atrial flutter with variable conduction": "AFLT", "Normal ECG": "NORM",
    "Compared with previous tracing atrial fibrillation is new": "AFIB",
    "Left bundle branch block, unchanged from previous tracing": "LBBB", "Bigeminal PVCs": "PVC",
    "T abnrm, anterolateral leads": "TABN", "Sinus rhythm with PVC(s) with 1st degree A-V block": "PVC AVB1",
    "Sinus rhythm. Left ventricular hypertrophy. Abnormal ECG": "LVH",
    "Probable LVH with ST-T abnormality": "STDEV TABN"
}
NOT_ASSERTED = {
    "No evidence of ischemia, LVH or Q waves": "", "Possible left atrial abnormality": "AE",
    "Probable left ventricular hypertrophy": "LVH LVHV", "Borderline prolonged QT interval": "LQT",
    "Cannot rule out anterior infarct - age undetermined": "QWAVE", "Inferior infarct - age undetermined": "QWAVE",
    "LVH cannot be ruled out": "LVH LVHV", "Can not rule out right ventricular hypertrophy": "RVH",
    "Left ventricular hypertrophy is no longer present": "",
    "Compared with previous tracing atrial fibrillation is gone": "",
    "Since last tracing, left bundle branch block has resolved": "", "Otherwise normal ECG": "NORM",
    "Borderline ECG": "NORM", "Abnormal ECG": "", "Incomplete left bundle branch block": "LBBB",
    "Normal sinus rhythm": "", "Absence of atrial fibrillation": "", "Sinus rhythm without ST changes": "",
    "Consider right ventricular hypertrophy": "RVH", "Anterior ischemia": "STDEV TABN", "Leftward axis": "LAD",
    "Sinus or ectopic atrial tachycardia": "STACH SVT", "rSr' in V1, right VCD or RVH": "IRBBB RVH",
    "Conduction defect of right bundle branch block type": "RBBB IRBBB", "Extensive IVCD": "",
    "*** Consider acute ST elevation MI ***": "STDEV QWAVE", "Atrial fibrillation/flutter": "AFIB AFLT",
    "T waves are not inverted": "", "R/o WPW": "WPW", "AVB": ""
}


@pytest.mark.parametrize("line", ASSERTED)
def test_line_asserts(line):
    assert set(read_line(line).asserted) == set(ASSERTED[line].split())


@pytest.mark.parametrize("line", NOT_ASSERTED)
def test_line_does_not_assert(line):
    reading = read_line(line)
    assert not reading.asserted and set(reading.unknown) == set(NOT_ASSERTED[line].split())


@pytest.mark.parametrize(
    "line",
    [
        "--- Pediatric criteria used ---", "Report made without knowing the patient's age",
        "--- Possible measurement error ---", "Recording unsuitable for analysis"
    ],
)
def test_lines_about_the_recording_are_no_reading(line):
    assert labels_from_report(pd.Series([[line]]))[0].isna().all(axis=None)


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_can_be_read(text):
    assert set(read_line(text).asserted) <= set(LABELS)


def test_report_given_as_one_string_equals_its_lines():
    lines = ["Atrial fibrillation", "Prolonged QT interval", "Abnormal ECG"]
    a, b, c = (labels_from_report(pd.Series([v]))[0] for v in (lines, " | ".join(lines), "\n".join(lines)))
    pd.testing.assert_frame_equal(a, b)
    pd.testing.assert_frame_equal(a, c)


def test_reports_written_by_the_simulator_are_read_back():
    cohorts = pytest.importorskip("peace_nb.simulation.phrases")
    rng = np.random.default_rng(5)
    truth = rng.random((600, 27)) < 0.06
    truth[:, 0] = ~truth[:, 1:].any(1)
    truth[truth[:, LABELS.index("AFLT")], LABELS.index("AVB23")] = False
    names = np.array(LABELS)
    reports = [cohorts.mimic_report(set(names[t]), 120.0, rng) for t in truth]
    y, coverage = labels_from_report(pd.Series(reports))
    assert (y.to_numpy()[truth] == 1).all(), "a written finding was not read"
    assert not (y.to_numpy()[~truth] == 1).any(), "a finding was read that was not written"


def test_many_reports_are_fast():
    lines = [
        ["Sinus rhythm", "Left axis deviation", "Abnormal ECG"],
        ["Sinus tachycardia", "Possible left atrial abnormality"]
    ] * 20_000
    y, _ = labels_from_report(pd.Series(lines))
    assert y["LAD"].sum() == 20_000 and y["AE"].isna().sum() == 20_000
