"Cohorts: leads by name, ages, sexes, sentinels, missing files, and splits that must not leak."
import os, shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from hypothesis import given, settings, strategies as st

import peace_nb.cohorts.tables as cohorts
from peace_nb.cohorts.splits import check_disjoint, split_by_fold, split_by_patient
from peace_nb.cohorts.load import load_cohort
from peace_nb.cohorts import records
from peace_nb.cohorts.records import read_record
from peace_nb.labels.space import LABELS
from peace_nb.signals.prepare import LEADS, SignalSpec
from peace_nb.simulation.cohorts import write_simulated_cohort
from peace_nb.store.build import build_store
from peace_nb.settings import PeaceError

SAMPLE = os.environ.get("PEACE_SAMPLE_DATA")
real = pytest.mark.skipif(not SAMPLE, reason="PEACE_SAMPLE_DATA is not set: no real records to read")
NAMES = ("mimic-iv-ecg", "ptb-xl", "zzu-pecg")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("home")
    for name in NAMES: write_simulated_cohort(name, root / name, 30, seed=5)
    return root


@pytest.fixture
def copy(home, tmp_path):
    "A private copy of one simulated cohort, to be spoiled."
    def of(name): return Path(shutil.copytree(home / name, tmp_path / name))
    return of


@pytest.mark.parametrize("name", NAMES)
def test_the_table_has_the_common_columns(home, name):
    c = load_cohort(name, home / name)
    assert c.table.columns[:9].tolist() == list(cohorts.COLUMNS) and c.table.index.is_unique and c.table.index.name == "record_id"
    assert c.labels.columns.tolist() == list(LABELS) and c.labels.index.equals(c.table.index) and c.labels.stack().isin([0, 1]).all()
    assert set(c.table.sex.dropna()) <= {"F", "M"} and c.table.age_days.dropna().between(0, 90 * 365.25).all()
    assert all(isinstance(v, str) for v in c.table.patient_id) and (c.table.quality.map(type) == str).all()


@pytest.mark.parametrize("name", NAMES)
def test_signals_agree_with_wfdb_lead_by_lead(home, name):
    c = load_cohort(name, home / name)
    for rid in c.table.index[:10]:
        rec = wfdb.rdrecord(str(c.root / c.table.path[rid]))
        x, mask = c.signal(rid)
        stored = {n.lower(): v for n, v in zip(rec.sig_name, rec.p_signal.T)}
        for lead, row, m in zip(LEADS, x, mask):
            if lead.lower() in stored and not np.isnan(stored[lead.lower()]).all():
                assert m and np.allclose(row, stored[lead.lower()], atol=1e-5, equal_nan=True)
            else: assert not m and not row.any()


def test_mimic_without_patients_has_no_age(copy, tmp_path):
    root = copy("mimic-iv-ecg")
    with_ages = load_cohort("mimic-iv-ecg", root)
    assert with_ages.table.age_days.between(18 * 365, 91 * 366).all() and with_ages.table.sex.notna().all()
    moved = tmp_path / "elsewhere.csv"; shutil.move(root / "hosp" / "patients.csv", moved)
    bare = load_cohort("mimic-iv-ecg", root)
    assert bare.table.age_days.isna().all() and bare.table.sex.isna().all()
    pd.testing.assert_frame_equal(load_cohort("mimic-iv-ecg", root, patients=moved).table, with_ages.table)
    with pytest.raises(PeaceError, match="nowhere.csv does not exist"): load_cohort("mimic-iv-ecg", root, patients=tmp_path / "nowhere.csv")
    store = build_store(bare.part(bare.table.index[:5]), SignalSpec(fs=100), tmp_path / "s", progress=False)    # a table of NaN ages can be stored
    assert store.table.age_days.isna().all()


def test_mimic_sentinels_are_not_measurements(copy):
    root = copy("mimic-iv-ecg")
    m = pd.read_csv(root / "machine_measurements.csv")
    m.loc[0, ["p_onset", "p_axis", "rr_interval"]] = [29999, 32767, 65535]
    m.to_csv(root / "machine_measurements.csv", index=False)
    row = load_cohort("mimic-iv-ecg", root).table.loc[str(m.study_id[0])]
    assert row[["p_onset", "p_axis", "rr_interval"]].isna().all()


def test_a_mimic_record_without_a_report_has_no_labels(copy):
    root = copy("mimic-iv-ecg")
    m = pd.read_csv(root / "machine_measurements.csv")
    m.iloc[1:].to_csv(root / "machine_measurements.csv", index=False)
    c = load_cohort("mimic-iv-ecg", root)
    assert c.labels.loc[str(m.study_id[0])].isna().all() and c.table.quality[str(m.study_id[0])] == "no report"


def test_ptbxl_age_300_and_unreadable_codes(copy):
    root = copy("ptb-xl")
    db = pd.read_csv(root / "ptbxl_database.csv").astype({"age": float})
    db.loc[0, "age"], db.loc[1, "age"], db.loc[2, "scp_codes"], db.loc[3, "patient_id"] = 300, np.nan, "{'NORM': 100", np.nan
    db.to_csv(root / "ptbxl_database.csv", index=False)
    c = load_cohort("ptb-xl", root)
    ids = db.ecg_id.astype(str)
    assert c.table.age_days[ids[0]] == 90 * 365.25 and np.isnan(c.table.age_days[ids[1]])
    assert c.labels.loc[ids[2]].isna().all() and c.table.quality[ids[2]] == "labels unreadable"
    assert c.table.patient_id[ids[3]] == f"record {ids[3]}"
    assert (c.table.sex == db.sex.map({0: "M", 1: "F"}).to_numpy()).all()


@pytest.mark.parametrize("name, lost", [("ptb-xl", "ptbxl_database.csv"), ("ptb-xl", "scp_statements.csv"), ("zzu-pecg", "AttributesDictionary.csv"), ("zzu-pecg", "ECGCode.csv"),
                                        ("zzu-pecg", "DiseaseCode.csv"), ("mimic-iv-ecg", "record_list.csv"), ("mimic-iv-ecg", "machine_measurements.csv")])
def test_a_folder_that_is_not_the_data_set_names_the_missing_file(copy, name, lost):
    root = copy(name); (root / lost).unlink()
    with pytest.raises(PeaceError, match=f"{lost} is missing"): load_cohort(name, root)


def test_other_refusals(copy, tmp_path):
    with pytest.raises(PeaceError, match="there is no cohort 'ptbxl'"): load_cohort("ptbxl", tmp_path)
    with pytest.raises(PeaceError, match="is not a folder"): load_cohort("ptb-xl", tmp_path / "nothing")
    root = copy("ptb-xl"); table = root / "ptbxl_database.csv"
    db = pd.read_csv(table)
    db.drop(columns="scp_codes").to_csv(table, index=False)
    with pytest.raises(PeaceError, match="has no column 'scp_codes'"): load_cohort("ptb-xl", root)
    pd.concat([db, db.iloc[:1]]).to_csv(table, index=False)
    with pytest.raises(PeaceError, match="more than once"): load_cohort("ptb-xl", root)
    table.write_bytes(b"")
    with pytest.raises(PeaceError, match="cannot be read as a table"): load_cohort("ptb-xl", root)
    root = copy("zzu-pecg"); z = pd.read_csv(root / "AttributesDictionary.csv")
    pd.concat([z, z.iloc[:1]]).to_csv(root / "AttributesDictionary.csv", index=False)
    with pytest.raises(PeaceError, match="duplicate"): load_cohort("zzu-pecg", root)


def test_the_fingerprint_follows_content_not_place(home, copy):
    here, root = load_cohort("zzu-pecg", home / "zzu-pecg"), copy("zzu-pecg")
    assert load_cohort("zzu-pecg", root).fingerprint == here.fingerprint
    hea = root / f"{here.table.path.iloc[3]}.hea"
    hea.write_text(hea.read_text().replace(" V1", " V2", 1))
    assert load_cohort("zzu-pecg", root).fingerprint != here.fingerprint
    assert here.part(here.table.index[1:]).fingerprint != here.fingerprint


@settings(deadline=None, max_examples=15)
@given(n=st.integers(20, 120), most=st.integers(1, 30), seed=st.integers(0, 1000))
def test_no_patient_is_in_two_parts(n, most, seed):
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(n), rng.integers(1, most + 1, n))
    rng.shuffle(owner)
    table = pd.DataFrame({"patient_id": owner.astype(str), "age_days": rng.uniform(0, 30_000, len(owner))}, index=[f"r{i}" for i in range(len(owner))])
    table.iloc[::7, 1] = np.nan
    labels = pd.DataFrame(rng.random((len(owner), 6)) < [.5, .3, .1, .05, .02, 0], index=table.index).astype(float)
    labels.iloc[::11, 0] = np.nan
    split = split_by_patient(table, labels, seed=seed)
    assert split.groupby(table.patient_id).nunique().max() == 1 and set(split) == {"train", "val", "test"} and split.index.equals(table.index)
    shuffled = table.sample(frac=1, random_state=seed)
    assert split_by_patient(shuffled, labels, seed=seed).reindex(split.index).equals(split)


def test_a_leaking_split_is_refused(home):
    "If patients were not grouped, this is what would be seen."
    c = load_cohort("mimic-iv-ecg", home / "mimic-iv-ecg")
    by_record = pd.Series(np.resize(["train", "train", "test"], len(c)), index=c.table.index)
    with pytest.raises(PeaceError, match="the split leaks"): check_disjoint(c.table, by_record)
    folds = c.table.assign(fold=np.resize(np.arange(1, 11), len(c)))
    with pytest.raises(PeaceError, match="the split leaks"): split_by_fold(folds)
    with pytest.raises(PeaceError, match="at least 10 patients"): split_by_patient(c.table.iloc[:3], c.labels.iloc[:3])
    with pytest.raises(PeaceError, match="no folds"): split_by_fold(c.table)


@real
def test_fifty_real_rows_of_the_zzu_table(tmp_path):
    "Real rows without signals: nine-lead children, `Null` quality, packed codes."
    z = Path(SAMPLE) / "zzu-pecg-sample"
    shutil.copy(z / "AttributesDictionary.rows50.csv", tmp_path / "AttributesDictionary.csv")
    for f in ("ECGCode.csv", "DiseaseCode.csv"): shutil.copy(z / f, tmp_path)
    c = load_cohort("zzu-pecg", tmp_path)
    assert len(c) == 50 and c.table.leads.isin([9, 12]).all() and c.table.seconds.between(5, 120).all() and c.table.bsqi.between(0, 1).all()
    assert len(c.coverage.unmatched) == 0 and (c.labels == 1).any(axis=1).mean() > .8
    with pytest.raises(PeaceError, match="no record of zzu-pecg could be used: Child_ecg.*does not exist"):
        build_store(c, SignalSpec(fs=100), tmp_path / "s", progress=False)
    assert not list(tmp_path.glob("s*"))


@real
@pytest.mark.parametrize("name", ["ptb-xl", "zzu-pecg"])
def test_the_shortcut_reads_what_wfdb_reads(name, monkeypatch):
    "Format 16 by numpy against wfdb.rdrecord, on real headers."
    c = load_cohort(name, Path(SAMPLE) / f"{name}-sample")
    for path in c.table.path.iloc[:40]:
        fast = read_record(c.root / path)
        monkeypatch.setattr(records, "_is_plain", lambda head: False)
        slow = read_record(c.root / path)
        monkeypatch.undo()
        assert np.allclose(fast[0], slow[0], atol=1e-9) and fast[1:] == slow[1:]
