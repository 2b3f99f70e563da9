"""Simulated cohorts on disk: there and back through the loaders, killed builds, several processes, folders that must not be touched."""
import json

import numpy as np
import pandas as pd
import pytest
import wfdb

from peace_nb.cohorts.load import load_cohort
from peace_nb.labels.space import LABELS
from peace_nb.simulation import cohorts as sc
from peace_nb.settings import PeaceError

SIZES = {"mimic-iv-ecg": 25, "ptb-xl": 60, "zzu-pecg": 60}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohorts")
    for layout, n in SIZES.items(): sc.write_simulated_cohort(layout, root / layout, n, seed=11)
    return root


def truth(root): return pd.read_csv(root / sc.TRUTH, dtype={"record_id": str}).set_index("record_id")


@pytest.mark.parametrize("layout", sc.LAYOUTS)
def test_labels_there_and_back(home, layout):
    cohort = load_cohort(layout, home / layout)
    meant = truth(home / layout).loc[cohort.labels.index, list(LABELS)]
    read = cohort.labels[list(LABELS)]
    wrong = (read != meant) & read.notna()
    assert wrong.sum().sum() == 0, wrong.sum()[wrong.sum() > 0]
    assert read.notna().to_numpy().mean() > .85                                   # NaN must stay the exception
    assert cohort.table.patient_id.nunique() == SIZES[layout]


@pytest.mark.parametrize("layout", sc.LAYOUTS)
def test_people_there_and_back(home, layout):
    table = load_cohort(layout, home / layout).table
    r = sc.roster(layout, SIZES[layout], seed=11)
    assert len(table) == len(r)
    assert (table.sex == "F").sum() == (r.sex == "F").sum()
    # days: whole years in one, anchor year in the other
    ages = {"zzu-pecg": 1, "ptb-xl": 366, "mimic-iv-ecg": 740}[layout]
    known = table.age_days.notna() & (table.age_days < 89 * 365.25)
    assert abs(np.median(table.age_days[known]) - np.median(r.age_days[r.age_days < 89 * 365.25])) <= ages


def test_signals_by_name(home):
    "The cohort's lead order differs on disk, not in memory: III = II − I and aVF = (II + III) / 2 in every record."
    for layout in sc.LAYOUTS:
        cohort = load_cohort(layout, home / layout)
        for record in cohort.table.index[:8]:
            x, mask = cohort.signal(record)
            if not mask[:6].all() or not np.isfinite(x[:6]).all() or (x[:6] == 0).all(1).any() or np.abs(x).max() > 20:
                continue
            assert np.abs(x[2] - (x[1] - x[0])).max() < .02 and np.abs(x[5] - (x[1] + x[2]) / 2).max() < .02
            assert np.abs(x[4] - (x[0] - x[2]) / 2).max() < .02


@pytest.mark.parametrize("layout", sc.LAYOUTS)
def test_samples_within_half_a_step(tmp_path, monkeypatch, layout):
    "What wfdb reads is what was simulated, within half a least significant bit, and headers vouch for their files."
    real, kept = sc._simulate, []
    def keep(*a):
        for rows, sim, written in real(*a):
            kept.append((rows, sim))
            yield rows, sim, written
    monkeypatch.setattr(sc, "_simulate", keep)
    sc.write_simulated_cohort(layout, tmp_path / "c", 4, seed=3, max_records=2, rates=(500,), damaged=.5)
    table = load_cohort(layout, tmp_path / "c").table
    assert len(table) == sum(len(rows) for rows, _ in kept)
    for rows, sim in kept:
        for i, r in enumerate(rows.itertuples()):
            record = {
                "ptb-xl": lambda: str(r.Index + 1), "zzu-pecg": lambda: f"P{r.patient + 1:05d}_E{r.visit + 1:02d}",  # noqa: B023
                "mimic-iv-ecg": lambda: str(40_000_000 + sc._scramble(r.Index, 9_999_991, 6_291_469))  # noqa: B023
            }[layout]()
            stem = str(tmp_path / "c" / table.path[record])
            rec, raw = wfdb.rdrecord(stem), wfdb.rdrecord(stem, physical=False)
            assert raw.checksum == raw.calc_checksum() and raw.init_value == list(raw.d_signal[0])
            order = [[n.upper() for n in sc.LEADS].index(n.upper()) for n in rec.sig_name]
            meant = np.nan_to_num(sim.signals[i]) if layout == "ptb-xl" else sim.signals[i]
            off = np.abs(rec.p_signal.T - meant[order]) * np.reshape(rec.adc_gain, (-1, 1))
            assert np.nanmax(off) <= .5 + 1e-6 and (np.isnan(rec.p_signal.T) == np.isnan(meant[order])).all()


def test_nine_leads_and_days(home):
    cohort = load_cohort("zzu-pecg", home / "zzu-pecg")
    nine = cohort.table.index[cohort.table.leads == 9]
    assert len(nine)
    _, mask = cohort.signal(nine[0])
    assert mask.tolist() == [True] * 7 + [False, True, False, True, False]
    assert cohort.table.age_days.between(1, 5475).all()


def test_traps_are_there(tmp_path):
    sc.write_simulated_cohort("mimic-iv-ecg", tmp_path / "m", 30, seed=2, damaged=.3)
    m = pd.read_csv(tmp_path / "m" / "machine_measurements.csv")
    assert (m.p_end == 29999).any() and (m.p_axis == 32767).any() and (m.rr_interval == 65535).any()
    dead = nan = 0
    for path in (tmp_path / "m").rglob("*.hea"):
        x = wfdb.rdrecord(str(path.with_suffix(""))).p_signal
        dead += bool((x == 0).all(0).any())
        nan += bool(np.isnan(x).any())
    assert dead and nan
    sc.write_simulated_cohort("zzu-pecg", tmp_path / "z", 40, seed=2, damaged=.5)
    peaks = [np.abs(wfdb.rdrecord(str(p.with_suffix(""))).p_signal).max() for p in (tmp_path / "z").rglob("*.hea")]
    assert .25 < np.mean(np.array(peaks) > 26) < .75 and max(peaks) < 26.7


def test_a_reading_is_written_and_the_truth_is_kept(tmp_path):
    clean = sc.write_simulated_cohort("zzu-pecg", tmp_path / "clean", 60, seed=4, illnesses="hospital")
    sc.write_simulated_cohort("zzu-pecg", tmp_path / "read", 60, seed=4, illnesses="hospital", reader="first")
    assert clean["n_records"] and truth(tmp_path / "clean").equals(truth(tmp_path / "read"))
    a, b = (load_cohort("zzu-pecg", tmp_path / k).labels for k in ("clean", "read"))
    known = a.notna() & b.notna()
    assert .01 < ((a != b) & known).to_numpy().sum() / known.to_numpy().sum() < .1


def test_a_hospital_there_and_back(tmp_path):
    "What a reader wrote of hospital children is what the loader reads, and a child's illness is in its ICD codes."
    sc.write_simulated_cohort("zzu-pecg", tmp_path / "h", 150, seed=5, illnesses="hospital")
    cohort = load_cohort("zzu-pecg", tmp_path / "h")
    meant, read = truth(tmp_path / "h").loc[cohort.labels.index, list(LABELS)], cohort.labels[list(LABELS)]
    assert ((read != meant) & read.notna()).sum().sum() == 0
    findings = pd.read_csv(tmp_path / "h" / "AttributesDictionary.csv").AHA_code
    assert findings.str.contains("D37|G70").any()               # junctional rhythm or ventricular tachycardia
    sick = cohort.table.disease_groups.astype(str)
    assert .15 < sick.str.contains("ongenital|yocarditis|yopathy|awasaki").mean() < .45
    kept = read.groupby(cohort.table.patient_id)[["RBBB", "RVH", "LAFB", "WPW"]].agg(lambda v: v.nunique())
    assert kept.max().max() == 1                                 # chronic: the same in every record of a child


def test_killed_build_is_continued(tmp_path, monkeypatch):
    "A build that dies keeps its finished shards; the second start redoes only the rest, and the bytes are those of an undisturbed build."
    kw = dict(layout="ptb-xl", n_patients=24, seed=6, shard=6, rates=(100,))
    sc.write_simulated_cohort(root=tmp_path / "whole", **kw)
    real, calls = sc._simulate, []
    def dies(s, part, number, *a):
        if number == 2: raise KeyboardInterrupt
        calls.append(number)
        return real(s, part, number, *a)
    monkeypatch.setattr(sc, "_simulate", dies)
    with pytest.raises(KeyboardInterrupt): sc.write_simulated_cohort(root=tmp_path / "cut", **kw)
    assert not (tmp_path / "cut").exists() and calls == [0, 1]
    calls.clear()
    monkeypatch.setattr(
        sc, "_simulate", lambda s, part, number, *a: (calls.append(number), real(s, part, number, *a))[1]
    )
    sc.write_simulated_cohort(root=tmp_path / "cut", **kw)
    assert 0 not in calls and 1 not in calls and 2 in calls
    assert (
        sc.folder_hash(tmp_path / "cut") == sc.folder_hash(tmp_path / "whole")
        and not (tmp_path / "cut.partial").exists()
    )


def test_half_build_of_other_settings_is_thrown_away(tmp_path):
    kw = dict(layout="ptb-xl", n_patients=6, rates=(100,))
    partial = tmp_path / "c.partial" / "_shards"
    partial.mkdir(parents=True)
    (partial / "00000.json").write_text("[]")
    (partial.parent / "settings.json").write_text(json.dumps({"simulated": True}))
    assert sc.write_simulated_cohort(root=tmp_path / "c", **kw)["n_records"] >= 6


@pytest.mark.parametrize(
    "names, word",
    [
        (("thesis.txt",), "thesis.txt"), (("files", "record_list.csv"), "real data"),
        (("settings.json", "photos"), "photos")
    ],
)
def test_a_folder_that_is_only_named_like_a_half_build_is_refused(tmp_path, names, word):
    partial = tmp_path / "c.partial"
    partial.mkdir()
    for n in names: (partial / n).write_text("mine")
    with pytest.raises(PeaceError, match=word): sc.write_simulated_cohort("ptb-xl", tmp_path / "c", 2, rates=(100,))
    assert {p.name: p.read_text() for p in partial.iterdir()} == {n: "mine" for n in names} and not (
        tmp_path / "c"
    ).exists()


def test_an_unreadable_note_or_marker_is_another_build(tmp_path):
    kw = dict(layout="ptb-xl", n_patients=2, rates=(100,))
    (tmp_path / "c.partial" / "_shards").mkdir(parents=True)
    (tmp_path / "c.partial" / "settings.json").write_bytes(b'{"simul\xff')
    sc.write_simulated_cohort(root=tmp_path / "c", **kw)
    (tmp_path / "c" / sc.MARKER).write_text("{")
    with pytest.raises(PeaceError, match="other settings"): sc.write_simulated_cohort(root=tmp_path / "c", **kw)
    assert sc.write_simulated_cohort(root=tmp_path / "c", overwrite=True, **kw)["n_patients"] == 2


def test_two_processes_write_the_same_bytes(tmp_path):
    kw = dict(layout="zzu-pecg", n_patients=24, seed=8, shard=10)
    sc.write_simulated_cohort(root=tmp_path / "one", jobs=1, **kw)
    sc.write_simulated_cohort(root=tmp_path / "two", jobs=2, **kw)
    assert sc.folder_hash(tmp_path / "one") == sc.folder_hash(tmp_path / "two")


def test_folders_that_are_not_ours(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "ptbxl_database.csv").write_text("ecg_id\n1\n")
    with pytest.raises(PeaceError, match="real data"): sc.write_simulated_cohort("ptb-xl", tmp_path / "real", 2)
    assert (tmp_path / "real" / "ptbxl_database.csv").read_text() == "ecg_id\n1\n"
    sc.write_simulated_cohort("ptb-xl", tmp_path / "sim", 2, rates=(100,))
    with pytest.raises(PeaceError, match="other settings"):
        sc.write_simulated_cohort("ptb-xl", tmp_path / "sim", 3, rates=(100,))
    assert sc.write_simulated_cohort("ptb-xl", tmp_path / "sim", 3, rates=(100,), overwrite=True)["n_patients"] == 3


@pytest.mark.parametrize(
    "kw, word",
    [
        (dict(layout="ptbxl", n_patients=1), "ptbxl"), (dict(layout="ptb-xl", n_patients=0), "n_patients"),
        (dict(layout="ptb-xl", n_patients=1, readers="first"), "readers"),
        (dict(layout="ptb-xl", n_patients=1, reader="third"), "third"),
        (dict(layout="ptb-xl", n_patients=1, illnesses="hospital"), "children"),
        (dict(layout="zzu-pecg", n_patients=1, lengths=((30, 9), (4.9, 1))), "a record of 4.9 s is too short"),
        (dict(layout="zzu-pecg", n_patients=1, lengths=((float("nan"), 9),)), "too short"),
        (dict(layout="zzu-pecg", n_patients=1, lengths=((30, -1),)), "number of records above 0"),
        (dict(layout="zzu-pecg", n_patients=1, lengths="real"), "no record lengths 'real'"),
        (dict(layout="ptb-xl", n_patients=1, lengths="published"), "lengths are for zzu-pecg"),
    ],
)
def test_faults_are_named(tmp_path, kw, word):
    with pytest.raises(PeaceError, match=word): sc.write_simulated_cohort(root=tmp_path / "x", **kw)
    assert not any(tmp_path.iterdir())


def test_published_lengths_are_written_and_read(tmp_path):
    marker = sc.write_simulated_cohort("zzu-pecg", tmp_path / "long", 60, seed=4, lengths="published")
    assert [tuple(pair) for pair in marker["settings"]["lengths"]] == list(sc.published_lengths())
    table = load_cohort("zzu-pecg", tmp_path / "long").table
    drawn = sc.roster("zzu-pecg", 60, 4, lengths="published")
    assert sorted(table["seconds"]) == sorted(drawn["seconds"]) and table["seconds"].max() >= 30
    assert 0.45 < (table["seconds"] == 30).mean() < 0.85 and set(table["seconds"]) <= {s for s, _ in sc.published_lengths()}
    assert set(sc.roster("zzu-pecg", 60, 4)["seconds"]) <= {s for s, _ in sc.ZZU_SECONDS}
