"Labels on real tables, token by token; the challenge's code list; machine statements; filters on damaged tables."
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ecgbench.labels.zzu_pecg import parse_code_list

from peace_nb.labels.aha import _SPH_WRITES, labels_from_aha, parts_of_finding
from peace_nb.labels.reports import labels_from_report
from peace_nb.labels.space import LABELS
from peace_nb.labels.states import split_cell
from peace_nb.labels.reports import score_statements
from peace_nb.labels.aha import parts_of_finding, zzu_tokens
from peace_nb.labels.others import (
    CPSC, DISEASES, diseases_from_icd, labels_from_cpsc, labels_from_ludb, report_language, trusted
)
from peace_nb.labels.snomed import CINC_SOURCES, labels_from_cinc
from peace_nb.cohorts import zzu_filters as Z
from peace_nb.settings import PeaceError

SAMPLE = os.environ.get("PEACE_SAMPLE_DATA")
needs_sample = pytest.mark.skipif(
    not SAMPLE, reason="PEACE_SAMPLE_DATA is not set: the real annotation tables are not at hand"
)
STATEMENTS = pd.read_csv(Path(__file__).parent / "data" / "mimic_statements.csv", keep_default_na=False)


def zzu(name): return pd.read_csv(Path(SAMPLE) / "zzu-pecg-sample" / name)


# ---------------------------------------------------------------- ZZU-pECG
@needs_sample
@pytest.mark.parametrize("name", ["AttributesDictionary.rows50.csv", "AttributesDictionary.csv"])
def test_every_token_of_every_row_of_the_real_table_is_accounted_for(name):
    rows = zzu(name).set_index("ECG_ID")
    tokens = zzu_tokens(rows)
    assert set(tokens["kind"]) <= {"mapped", "made unknown", "outside", "modifier", "disease", "other diagnosis"}
    # counted by hand: every element, and every word glued to one
    for column in ("AHA_code", "CHN_code", "ICD-10 code"):
        cells = [t for v in rows[column] for t in parse_code_list(v)]
        glued = 0 if column == "ICD-10 code" else sum(len(re.findall(r"\+(?=[A-Za-z])", t)) for t in cells)
        assert (tokens["column"] == column).sum() == len(cells) + glued
    assert set(tokens["record"]) == set(rows.index)


@needs_sample
def test_all_105_findings_are_known_by_code_by_prose_and_with_every_modifier():
    real = pd.read_csv(Path(SAMPLE) / "zzu-pecg-sample" / "ECGCode.csv", keep_default_na=False)
    modifiers = [c for c in real["AHA(Category&Code)"] if c.startswith("Modifier")]
    assert len(real) == 105 and len(modifiers) == 14 and (real["AHA(Category&Code)"] == "N/A").sum() == 14
    for aha, chn, prose in zip(real["AHA(Category&Code)"], real["CHN(Category&Code)"], real["Description"]):
        prose = prose.strip()
        names = {"aha": [prose] + [aha] * (aha != "N/A"), "chn": [prose] + [chn.replace(" ", "")] * (chn != "N/A")}
        for vocabulary, tokens in names.items():
            found = [parts_of_finding(t, vocabulary) for t in tokens]
            assert found[0][0] != "unknown" and all(f == found[0] for f in found), (vocabulary, tokens)
        if not aha.startswith("Modifier"):
            for m in modifiers: assert parts_of_finding(f"{prose}+{m}") == (parts_of_finding(prose)[0], [(m, True)])
    words = real["Description"][real["AHA(Category&Code)"].str.startswith("Modifier")]
    for w in words: assert parts_of_finding(f"F55+{w.strip()}", "chn")[1] == [(w.strip(), True)]


@needs_sample
def test_the_nineteen_diseases_are_those_of_the_real_dictionary():
    real = pd.read_csv(Path(SAMPLE) / "zzu-pecg-sample" / "DiseaseCode.csv", keep_default_na=False)
    real = real[~real["ICD-10 Code"].str.startswith("See")]
    ours = DISEASES["group"].str.lower()
    assert {c: " ".join(g.split()).lower() for c, g in zip(real["ICD-10 Code"], real["Disease Type"])} == ours.to_dict()


@needs_sample
def test_diseases_of_real_rows_agree_with_an_independent_reading():
    rows = zzu("AttributesDictionary.rows50.csv").set_index("ECG_ID")
    found = diseases_from_icd(rows["ICD-10 code"])
    by_hand = rows["ICD-10 code"].map(lambda v: {x.strip("' ") for x in str(v).split(";")})
    for code in DISEASES.index: assert found[code].tolist() == [code in s for s in by_hand]
    assert found.loc["P00418_E01", ["(FO) Q21.1", "Q21.1", "congenital heart disease"]].tolist() == [True, False, True]
    assert found.loc["P10188_E17", ["(F) I40.0", "myocarditis"]].all()


def test_a_prefix_is_part_of_the_disease_whatever_the_spaces():
    found = diseases_from_icd(pd.Series(["'(FO)Q21.1'", "'( FO )  Q21.1'", "'Q21.1'", np.nan, "Null", ""]))
    assert found["(FO) Q21.1"].tolist() == [True, True, False, False, False, False] and found["Q21.1"].tolist() == [
        False, False, True, False, False, False
    ]


def test_a_modifier_of_doubt_makes_unknown_and_assertion_wins():
    y, _ = labels_from_aha(pd.Series(["'K142+Modifier312'", "'K142+Modifier312';'K142'", "'K142+Modifier308'"]))
    assert np.isnan(y["LVH"][0]) and y["LVH"][1] == 1 and y["LVH"][2] == 1


# ---------------------------------------------------------------- challenges, CPSC, SPH, LUDB
@pytest.mark.parametrize("year,n", [(2020, 111), (2021, 133)])
def test_the_whole_challenge_code_list_is_mapped_or_set_aside_with_a_reason(year, n):
    import ecgbench
    codes = pd.read_csv(Path(ecgbench.__file__).parent / "data" / f"challenge{year}_dx_mapping.csv", dtype=str)[
        "snomed_code"
    ]
    y, coverage = labels_from_cinc(codes.map(lambda c: [c]), strict=True)
    assert (
        len(codes) == n
        and coverage.unmatched.empty
        and set(coverage.codes["fate"]) == {"mapped", "made unknown", "set aside"}
    )
    assert (coverage.codes.loc[coverage.codes["labels"] == "", "reason"] != "").all()


def test_cpsc_is_the_same_in_both_layouts():
    for number, row in CPSC.iterrows():
        a, _ = labels_from_cpsc(pd.Series([[int(number)]]), strict=True)
        b, _ = labels_from_cinc(pd.Series([row["snomed"]]), "cpsc_2018", strict=True)
        c, _ = labels_from_cpsc(pd.Series([row["abbreviation"]]), strict=True)
        pd.testing.assert_frame_equal(a, b)
        pd.testing.assert_frame_equal(a, c)
        assert (a.iloc[0] == 1).sum() == 1 and a.iloc[0].isna().sum() == 19
    with pytest.raises(PeaceError, match="r9.*'10'"): labels_from_cpsc(pd.Series([[10]], index=["r9"]), strict=True)


def test_no_source_denies_what_it_never_says():
    for source in CINC_SOURCES.index:
        y, _ = labels_from_cinc(pd.Series(["426783006"]), source)
        assert (
            y.loc[
                0,
                split_cell(CINC_SOURCES.at[source, "silent"])
                if CINC_SOURCES.at[source, "silent"] != "*"
                else list(LABELS),
            ]
            .isna()
            .all()
        )
    with pytest.raises(PeaceError, match="no challenge source"): labels_from_cinc(pd.Series(["426783006"]), "paris")
    with pytest.raises(PeaceError, match="index"):
        labels_from_cinc(pd.Series(["426783006"]), pd.Series(["ptb"], index=["other"]))


def test_concepts_without_a_side_or_a_sign_deny_nothing_they_may_mean():
    "A bundle branch block of unstated side may be an incomplete right one; a fresh infarct may show in ST and T."
    y, _ = labels_from_cinc(pd.Series(["6374002", "57054005"]), "ningbo", strict=True)
    assert y.loc[0, ["LBBB", "RBBB", "IRBBB"]].isna().all() and y.loc[0, "STDEV"] == 0
    assert y.loc[1, ["QWAVE", "STDEV", "TABN"]].isna().all() and y.loc[1, "RBBB"] == 0


def test_what_a_source_hardly_ever_writes_is_not_denied_by_its_silence():
    "SPH can say junctional tachycardia and no other supraventricular one; CPSC's extra records carry one right axis and one Q wave."
    y, _ = labels_from_aha(pd.Series(["1", "54", "50+346"]), vocabulary="sph", strict=True)
    assert (
        np.isnan(y.loc[0, "SVT"])
        and y.loc[1, "SVT"] == 1
        and np.isnan(y.loc[2, "SVT"])
        and (y.loc[2, ["AFIB", "AFLT", "PAC"]] == [1, 0, 0]).all()
    )
    y, _ = labels_from_cinc(pd.Series(["427084000", "47665007,164917005,111975006"]), "cpsc_2018_extra", strict=True)
    assert (
        y.loc[0, ["RAD", "LAD", "QWAVE", "LQT"]].isna().all()
        and (y.loc[1, ["RAD", "QWAVE", "LQT"]] == 1).all()
        and y.loc[0, "LVH"] == 0
    )


def test_cpsc_classes_written_as_decimals_are_the_same_classes():
    "A REFERENCE.csv that went through a spreadsheet or pandas once says `5.0`."
    y, _ = labels_from_cpsc(pd.Series([["5", "2"], ["5.0", "2.0", "nan"], [5.0, 2.0, np.nan], "5.0,2.0"]), strict=True)
    assert (y.loc[0, ["RBBB", "AFIB"]] == 1).all() and all(y.loc[i].equals(y.loc[0]) for i in range(1, 4))


def test_sph_grammar():
    y, coverage = labels_from_aha(
        pd.Series(["60+310;147", "1", "1;1", "22;23", "153", "37+341+308"]), vocabulary="sph", strict=True
    )
    assert (
        y.loc[0, ["PVC", "TABN"]].tolist() == [1, 1]
        and y["NORM"].tolist() == [0, 1, 1, 0, 0, 0]
        and y.loc[4, ["STDEV", "TABN"]].tolist() == [1, 1]
    )
    assert y["QWAVE"].isna().all() and y["LVHV"].isna().all() and coverage.unmatched.empty
    for code in _SPH_WRITES: assert parts_of_finding(code, "sph")[0] != "unknown"
    with pytest.raises(PeaceError, match="999"): labels_from_aha(pd.Series(["999"]), vocabulary="sph", strict=True)


@needs_sample
def test_ludb_reads_the_same_from_its_table_and_from_its_headers():
    root = Path(SAMPLE) / "ludb"
    table = pd.read_csv(root / "ludb.csv", index_col="ID").drop(columns=["Sex", "Age"])
    said = {i: [x for v in row.dropna() for x in str(v).splitlines()] for i, row in table.iterrows()}
    head = {
        i: (root / "data" / f"{i}.hea").read_text().split("<diagnoses>:")[1].replace("#", "").splitlines()
        for i in table.index
    }
    a, coverage = labels_from_ludb(pd.Series(said), strict=True)
    b, _ = labels_from_ludb(pd.Series(head), strict=True)
    differ = (a.fillna(-1) != b.fillna(-1)).any(axis=1)
    assert coverage.unmatched.empty and len(a) == 200
    pacing = table["Cardiac pacing"].fillna("").str.contains("presence, undefined")     # written in the table only
    assert set(differ.index[differ]) <= set(pacing.index[pacing])


# ---------------------------------------------------------------- PTB-XL
@needs_sample
def test_reports_of_three_languages_are_told_apart_and_kept():
    t = pd.read_csv(Path(SAMPLE) / "ptb-xl-sample" / "ptbxl_database.csv", index_col="ecg_id")
    language = report_language(t["report"])
    assert language.value_counts().to_dict() == {"de": 185, "en": 116, "sv": 45, "": 4}
    assert (
        language[4] == "de"
        and trusted(t).all()
        and trusted(t, second_opinion=True).sum() == 12
        and trusted(t, validated=True).all()
    )
    with pytest.raises(PeaceError, match="second_opinion"): trusted(t.drop(columns="second_opinion"))


# ---------------------------------------------------------------- machine statements
def test_statements_are_many_distinct_and_well_formed():
    assert len(STATEMENTS) >= 300 and STATEMENTS["statement"].str.lower().is_unique and (STATEMENTS["how"] != "").all()
    for a, u in zip(STATEMENTS["asserted"], STATEMENTS["unknown"]):
        assert set(split_cell(a) + split_cell(u)) <= set(LABELS) and not set(split_cell(a)) & set(split_cell(u))
    assert score_statements(STATEMENTS, LABELS)["statements"].min() >= 10


@pytest.mark.parametrize("label", LABELS)
def test_precision_and_recall_of_each_label(label):
    row = score_statements(STATEMENTS, (label,)).loc[label]
    assert row["precision"] >= .95 and row["recall"] >= .95


@pytest.mark.parametrize(
    "line,label",
    [
        ("Compared with previous tracing, {} is no longer present", 0), ("{} has replaced sinus rhythm", 1),
        ("Sinus rhythm has replaced {}", 0), ("{} is now present", 1), ("No evidence of {}", 0),
        ("Possible {}", np.nan), ("{}, unchanged from previous tracing", 1)
    ],
)
@pytest.mark.parametrize(
    "finding,of",
    [
        ("atrial fibrillation", "AFIB"), ("left bundle branch block", "LBBB"), ("right ventricular hypertrophy", "RVH"),
        ("prolonged QT interval", "LQT")
    ],
)
def test_habits_hold_for_any_finding(line, label, finding, of):
    y, _ = labels_from_report(pd.Series([["Sinus rhythm", line.format(finding)]]))
    np.testing.assert_equal(y[of][0], label)


# ---------------------------------------------------------------- filters
def small():
    t = pd.DataFrame(
        {
            "patient_id": ["a", "a", "b"], "age_days": [10.0, 5.0, np.nan], "leads": [12, 9, 12],
            "seconds": [10.0, 10.0, 4.0], "quality": "", "bassqi": np.nan, "disease_groups": None
        },
        index=["1", "2", "3"],
    )
    y = pd.DataFrame(0.0, index=t.index, columns=list(LABELS))
    y["NORM"] = 1
    return t, y


def test_filters_refuse_what_they_cannot_ask():
    t, y = small()
    with pytest.raises(PeaceError, match="leads"): Z.keep(t.drop(columns="leads"), y, Z.PAPER_FILTERS)
    with pytest.raises(PeaceError, match="same records"): Z.keep(t, y.iloc[::-1], Z.PAPER_FILTERS)
    assert Z.keep(t, y, Z.PAPER_FILTERS).tolist() == [True, False, False] and Z.keep(
        t, y, Z.ZzuFilters(leads=0, one_record=True)
    ).tolist() == [False, True, False]


def test_filter_table_never_gains_records_and_counts_each_child_once():
    t, y = small()
    counts = Z.filter_table(t, y, most=3)
    for name, row in counts.iterrows():
        parts = [p for p in name.split(" + ") if p != "no filter" and p != "one a child"]
        assert all(row["records"] <= counts.at[p, "records"] for p in parts) and row["patients"] <= row["records"]
    assert counts.at["no filter", "records"] == 3 and counts.at["one a child", "records"] == 2
    assert Z.nearest(counts, 3, rows=1)["difference"].iloc[0] == 0


def test_published_margins_are_those_of_the_data_set():
    lead = Z.published_leads()
    assert lead.loc["all", "records"] == 14190 and lead.loc["all", "records"] - lead.loc["all", "twelve_leads"] == 1856
