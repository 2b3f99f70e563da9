"""Six data sets in the layouts their publishers gave them: every lead in millivolts against another reader, labels against the codes as written."""
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from scipy.io import loadmat, savemat

from peace_nb.cohorts.load import cohort_names, load_cohort
from peace_nb.cohorts.records import read_window
from peace_nb.cohorts.splits import split_by_patient
from peace_nb.labels.space import LABELS
from peace_nb.cohorts.marked import LEIPZIG_LABELS, read_marks, windows
from peace_nb.signals.prepare import LEADS, RecordError, SignalSpec, prepare
from peace_nb.store.build import build_store
from peace_nb.settings import PeaceError

def heart(seconds, fs, leads=12, seed=0):
    rng, t = np.random.default_rng(seed), np.arange(int(round(seconds * fs))) / fs
    beat = np.exp(-0.5 * (((t % .83) - .3) / .012) ** 2)
    return np.linspace(-1.2, 1.5, leads)[:, None] * beat + rng.normal(0, .02, (leads, len(t)))


def mat4(path: Path, digital: np.ndarray):
    "The challenge's .mat by hand: five integers, the name, the samples; 24 bytes before the first one."
    path.write_bytes(
        struct.pack("<5i", 30, digital.shape[0], digital.shape[1], 0, 4) + b"val\0" + digital.astype("<i2").T.tobytes()
    )


def challenge(
    folder: Path, name: str, fs: int, seconds: float, comments: list, gains=None, baselines=None, leads=LEADS,
    unit="mV", seed=0, record_line=None
):
    folder.mkdir(parents=True, exist_ok=True)
    gains, baselines = gains or [1000] * len(leads), baselines or [0] * len(leads)
    d = np.rint(heart(seconds, fs, len(leads), seed) * np.array(gains)[:, None] + np.array(baselines)[:, None]).astype(
        np.int16
    )
    mat4(folder / f"{name}.mat", d)
    lines = [record_line or f"{name} {len(leads)} {fs} {d.shape[1]}"]
    lines += [
        f"{name}.mat 16+24 {g}({b})/{unit} 16 0 {r[0]} {r.sum(dtype=np.int64).astype(np.int16)} 0 {lead}"
        for g, b, r, lead in zip(gains, baselines, d, leads)
    ]
    (folder / f"{name}.hea").write_text("\n".join(lines + comments) + "\n")
    return (d - np.array(baselines)[:, None]) / np.array(gains)[:, None]


def test_all_ten_names_are_known():
    assert set(cohort_names()) >= {
        "mimic-iv-ecg", "ptb-xl", "zzu-pecg", "cinc", "cpsc2018", "ptb", "sph", "ludb", "leipzig"
    }


@pytest.fixture(scope="module")
def cinc(tmp_path_factory):
    "(cohort, what was meant: record -> millivolts) one or two records of each source, in the folders of different releases."
    root, meant = tmp_path_factory.mktemp("cinc"), {}
    def add(folder, name, *a, **k): return meant.__setitem__(name, challenge(root / folder, name, *a, **k))
    add(
        "training/cpsc_2018/g1", "A0001", 500, 15,
        ["#Age: 74", "#Sex: Male", "#Dx: 59118001", "#Rx: Unknown", "#Hx: Unknown", "#Sx: Unknown"], seed=1,
        record_line="A0001 12 500 7500 05-Feb-2020 11:39:16"
    )
    add("training/cpsc_2018/g1", "A0002", 500, 6, ["#Age: NaN", "#Sex: Female", "#Dx: 426783006"], seed=2)
    add("WFDB_CPSC2018_2", "Q0001", 500, 8, ["#Age: 70", "#Sex: Male", "#Dx: 164873001,63593006"], seed=3)
    add("WFDB_StPetersburg", "I0001", 257, 1800, ["#Age: 65", "#Sex: F", "#Dx: 164884008"], seed=4)
    add("training/ptb/g1", "S0001", 1000, 38.4, ["#Age: 81", "#Sex: Female", "#Dx: 164865005"], unit="mv", seed=5)
    add("training/ptb-xl/g1", "HR00001", 500, 10, ["#Age: 56", "#Sex: Female", "#Dx: 251146004,426783006"], seed=6)
    add("training/georgia/g1", "E00001", 500, 5, ["# Age: 68", "# Sex: Male", "# Dx: 270492004, 59931005"], seed=7)
    add(
        "WFDBRecords/01/010", "JS00001", 500, 10,
        ["#Age: 85", "#Sex: Male", "#Dx: 164889003,59118001,164934002", "#Rx: Unknown"], seed=8
    )
    add(
        "training/ningbo/g1", "JS20000", 500, 10, ["#Age: 5", "#Sex: Unknown", "#Dx: 426177001,39732003"],
        gains=[500 + 100 * i for i in range(12)], baselines=[10 * i - 60 for i in range(12)], seed=9
    )
    add(
        "training/ningbo/g23", "S23074", 500, 10, ["#Age: -1", "#Sex: N/A", "#Dx: "], leads=list(reversed(LEADS)),
        seed=10
    )
    return load_cohort("cinc", root), meant


def test_dataset_cinc_every_lead_in_millivolts(cinc):
    cohort, meant = cinc
    for rid, mv in meant.items():
        rec = wfdb.rdrecord(str(cohort.root / cohort.table.path[rid]))
        x, mask = cohort.signal(rid)
        stored = mv[::-1] if rid == "S23074" else mv
        assert mask.all() and np.abs(x - stored).max() < 1e-6 * max(1, np.abs(mv).max())
        assert np.allclose(x, rec.p_signal.T[[rec.sig_name.index(lead) for lead in LEADS]], atol=1e-6)
        assert cohort.table.fs[rid] == rec.fs and cohort.table.seconds[rid] == pytest.approx(rec.sig_len / rec.fs)
        plain = loadmat(cohort.root / f"{cohort.table.path[rid]}.mat")["val"]               # a third reader: MATLAB's
        assert np.array_equal(plain, rec.adc().T if rec.d_signal is None else rec.d_signal.T)


def test_dataset_cinc_labels_are_the_codes(cinc):
    L = cinc[0].labels
    assert L.loc["A0001", "RBBB"] == 1 and L.loc["A0001", "NORM"] == 0 and L.loc["A0002", "NORM"] == 1
    assert L.loc["A0001", ["LVH", "QWAVE", "AE", "LAD"]].isna().all()  # nine classes cannot speak of these
    assert L.loc["Q0001", ["LVH", "PAC"]].tolist() == [1, 1] and L.loc["Q0001", "RBBB"] == 0
    assert L.loc["I0001", "PVC"] == 1 and L.loc["S0001"].notna().sum() == 0
    assert L.loc["HR00001", "LOWV"] == 1 and L.loc["E00001", ["AVB1", "TABN"]].tolist() == [1, 1]
    assert L.loc["JS00001", ["AFIB", "RBBB", "TABN"]].tolist() == [1, 1, 1] and L.loc[
        "JS20000", ["SBRAD", "LAD"]
    ].tolist() == [1, 1]
    assert L.loc["S23074"].isna().all() and len(cinc[0].coverage.unmatched) == 0


def test_dataset_cinc_people_and_sources(cinc):
    t = cinc[0].table
    assert t.source.to_dict() == {
        "A0001": "cpsc_2018", "A0002": "cpsc_2018", "Q0001": "cpsc_2018_extra", "I0001": "st_petersburg_incart",
        "S0001": "ptb", "HR00001": "ptb-xl", "E00001": "georgia", "JS00001": "chapman_shaoxing", "JS20000": "ningbo",
        "S23074": "ningbo"
    }
    assert t.sex.reindex(["A0001", "A0002", "I0001", "JS20000", "S23074"]).tolist() == ["M", "F", "F", None, None]
    assert (
        np.isnan(t.age_days["A0002"])
        and t.age_days["E00001"] == 68 * 365.25
        and np.isnan(t.age_days["S23074"])
        and "impossible" in t.quality["S23074"]
    )
    assert (
        (t.quality[["I0001", "S0001"]] == "patient not stated").all()
        and t.patient_id.is_unique
        and "no diagnosis" in t.quality["S23074"]
    )


def test_dataset_cinc_all_rates_and_lengths_become_one_shape(cinc, tmp_path):
    store = build_store(cinc[0], SignalSpec(fs=100), tmp_path / "s", progress=False)
    assert len(store) == len(cinc[0]) and store.mask.all() and not len(store.set_aside)
    x, _ = store.batch(np.arange(len(store)))
    for i, rid in enumerate(store.table.index):
        again, _ = prepare(
            cinc[1][rid] if rid != "S23074" else cinc[1][rid][::-1], LEADS, cinc[0].table.fs[rid], SignalSpec(fs=100)
        )
        assert np.abs(x[i] - again).max() < 6e-4, rid  # half a microvolt of the store


def test_dataset_cinc_damage_is_set_aside(tmp_path):
    for i in range(6):
        challenge(tmp_path / "c" / "g1", f"E0000{i}", 500, 10, ["#Age: 50", "#Sex: Male", "#Dx: 427084000"], seed=i)
    folder = tmp_path / "c" / "g1"
    raw = bytearray((folder / "E00000.mat").read_bytes())
    raw[5000] ^= 4
    (folder / "E00000.mat").write_bytes(bytes(raw))
    # the preamble is not part of the samples
    (folder / "E00001.mat").write_bytes((folder / "E00001.mat").read_bytes()[:-24])
    (folder / "E00002.mat").unlink()
    first, second, *rest = (folder / "E00003.hea").read_text().splitlines()
    # as JS01052 of ecg-arrhythmia 1.0.0
    (folder / "E00003.hea").write_text("\n".join(["E00003 12 500 500000/mV 16 0 15 31255 0 I", *rest]) + "\n")
    (folder / "E00004.hea").write_bytes(b"\xff" * 300)
    cohort = load_cohort("cinc", tmp_path / "c")
    store = build_store(cohort, SignalSpec(fs=100), tmp_path / "s", progress=False)
    kinds = store.set_aside.set_index("record_id").kind.to_dict()
    assert kinds == {
        "E00000": "checksum", "E00001": "truncated", "E00002": "missing signal", "E00003": "bad header",
        "E00004": "bad header"
    }
    assert list(store.table.index) == ["E00005"] and cohort.labels.loc["E00004"].isna().all()
    lenient = load_cohort("cinc", tmp_path / "c", check=False)
    assert lenient.signal("E00000")[1].all() and lenient.part(["E00000"]).check is False
    (tmp_path / "empty").mkdir()
    with pytest.raises(PeaceError, match="no WFDB header"): load_cohort("cinc", tmp_path / "empty")
    with pytest.raises(PeaceError, match="is not a folder"): load_cohort("cinc", tmp_path / "nothing")


def test_dataset_cinc_first_copies_of_2020(tmp_path):
    "Georgia as first handed out: a record line that names the file, another gain, a date."
    meant = challenge(
        tmp_path, "E00001", 500, 10, ["#Age: 68", "#Sex: Male", "#Dx: 270492004"], gains=[4880] * 12,
        record_line="E00001.mat 12 500 5000 05-May-2020 14:50:55"
    )
    hea = tmp_path / "E00001.hea"
    hea.write_text(hea.read_text().replace("4880(0)/mV", "4880/mV"))
    c = load_cohort("cinc", tmp_path)
    assert (
        np.abs(c.signal("E00001")[0] - meant).max() < 1e-6
        and c.table.seconds["E00001"] == 10
        and c.labels.loc["E00001", "AVB1"] == 1
    )


def test_a_source_whose_checksums_never_fit_is_read_and_says_so(tmp_path):
    "Wrong in every lead of every record: written that way. Wrong in one record among sound ones: damaged."
    for name in ("E00001", "E00002", "E00003", "JS00001", "JS00002", "JS00003"):
        challenge(tmp_path / name[:2], name, 500, 10, ["#Dx: 427084000"], seed=int(name[-1]))
    for hea in (tmp_path / "E0").glob("*.hea"):
        hea.write_text(
            "\n".join(
                " ".join([*(p := line.split())[:6], "77", *p[7:]]) if ".mat" in line else line
                for line in hea.read_text().splitlines()
            )
            + "\n"
        )
    # the rest never arrived
    raw = bytearray((tmp_path / "JS" / "JS00002.mat").read_bytes())
    raw[24 + 240 :] = bytes(len(raw) - 264)
    (tmp_path / "JS" / "JS00002.mat").write_bytes(bytes(raw))
    c = load_cohort("cinc", tmp_path)
    assert (
        c.table.checksums.to_dict() == {n: n.startswith("JS") for n in c.table.index}
        and (c.table.quality[~c.table.checksums] == "checksums of this source do not fit").all()
    )
    assert all(c.signal(n)[1].all() for n in c.table.index if n != "JS00002")
    with pytest.raises(RecordError, match="checksum"): c.signal("JS00002")


def test_checksums_nobody_took_are_not_held_against_a_record(tmp_path):
    challenge(tmp_path, "E00001", 500, 10, ["#Dx: 427084000"])
    hea = tmp_path / "E00001.hea"
    zeroed = "\n".join(
        " ".join([*(p := line.split())[:6], "0", *p[7:]]) if ".mat" in line else line for line in hea.read_text().splitlines()
    )
    hea.write_text(zeroed + "\n")
    assert load_cohort("cinc", tmp_path).signal("E00001")[1].all()


def test_headers_without_checksums_do_not_stop_a_cohort(tmp_path):
    "A signal line may end after its resolution: no sum, no first sample, no name. The record is refused by itself, and its neighbours are read."
    for name in ("E00001", "E00002"): challenge(tmp_path, name, 500, 10, ["#Dx: 427084000"])
    hea = tmp_path / "E00001.hea"
    hea.write_text(
        "\n".join(" ".join(line.split()[:3]) if ".mat" in line else line for line in hea.read_text().splitlines()) + "\n"
    )
    (tmp_path / "._E00002.hea").write_bytes(b"\x00\x05\x16\x07Mac OS X")  # what an archive packed on a Mac leaves
    c = load_cohort("cinc", tmp_path)
    assert list(c.table.index) == ["E00001", "E00002"] and c.signal("E00002")[1].all()
    store = build_store(c, SignalSpec(fs=100), tmp_path / "s", progress=False)
    assert list(store.table.index) == ["E00002"] and store.set_aside.kind.tolist() == ["lead names"]


def test_cinc_ages_of_ptbxl_are_those_of_ptbxl(tmp_path):
    "300 is PTB-XL's word for above 89; elsewhere it is impossible."
    for name in ("HR00001", "E00001"):
        challenge(tmp_path, name, 500, 10, ["# Age: 300", "# Sex: Female", "# Dx: 426783006"])
    t = load_cohort("cinc", tmp_path).table
    assert (
        t.age_days["HR00001"] == 90 * 365.25
        and t.quality["HR00001"] == "patient not stated"
        and np.isnan(t.age_days["E00001"])
        and "impossible" in t.quality["E00001"]
    )


def test_cinc_reports_spell_out_what_the_challenges_never_listed(tmp_path):
    challenge(tmp_path, "JS00001", 500, 10, ["#Dx: 426177001,28189009,251147008,1234"])
    assert (
        load_cohort("cinc", tmp_path).table.report["JS00001"]
        == "sinus bradycardia; 2nd degree av block (type two); low qrs voltage in limb leads; 1234"
    )


def test_header_of_the_last_release_and_a_record_that_lost_its_letter(tmp_path):
    "Format `16x1+24`, a unit in small letters, leads in capitals, Windows line ends; S23074.hea names JS23074.mat."
    upper = [lead.upper() for lead in LEADS]
    folder = tmp_path / "training" / "ningbo" / "g13"
    truth = challenge(
        folder, "JS23074", 500, 10, ["# Age: 61", "# Sex: Male", "# Dx: 426177001"], leads=upper, unit="mv"
    )
    text = (
        (folder / "JS23074.hea")
        .read_text()
        .replace("JS23074 12", "S23074 12")
        .replace("16+24 1000(0)/mv", "16x1+24 1000.0(0)/mv")
    )
    (folder / "JS23074.hea").unlink()
    (folder / "S23074.hea").write_bytes(text.replace("\n", "\r\n").encode())
    c = load_cohort("cinc", tmp_path)
    x, mask = c.signal("S23074")
    assert (
        mask.all()
        and np.abs(x - truth).max() < 1e-6
        and c.labels.loc["S23074", "SBRAD"] == 1
        and c.table.source["S23074"] == "ningbo"
    )
    store = build_store(c, SignalSpec(fs=100), tmp_path / "s", progress=False)
    assert np.abs(store.batch(np.arange(1))[0][0] - prepare(truth, LEADS, 500, SignalSpec(fs=100))[0]).max() < 6e-4


def test_a_header_that_states_no_length_is_as_long_as_its_file(tmp_path):
    "0 stands for a length that is not stated; a file without a sample is refused."
    challenge(tmp_path, "JS00001", 500, 10, ["#Dx: 426177001"], record_line="JS00001 12 500 0")
    c = load_cohort("cinc", tmp_path)
    assert c.raw("JS00001")[0].shape == (12, 5000) and c.labels.loc["JS00001", "SBRAD"] == 1
    signal = tmp_path / "JS00001.mat"
    signal.write_bytes(signal.read_bytes()[:24])
    with pytest.raises(RecordError, match="without a single sample") as e: c.raw("JS00001")
    assert e.value.kind == "no sample"


@pytest.fixture(scope="module")
def cpsc(tmp_path_factory):
    root = tmp_path_factory.mktemp("cpsc")
    people = {
        "A0001": ("Male", 74.0, 15), "A0043": ("Female", 60.0, 12), "A0549": ("Male", np.nan, 30),
        "A2299": ("Female", -1.0, 6)
    }
    for i, (name, (sex, age, seconds)) in enumerate(people.items()):
        folder = root / f"TrainingSet{1 + i % 3}"
        folder.mkdir(exist_ok=True)
        savemat(
            folder / f"{name}.mat", {"ECG": {"sex": sex, "age": age, "data": heart(seconds, 500, seed=i)}},
            do_compression=bool(i % 2)
        )
    (root / "REFERENCE.csv").write_text(
        "Recording,First_label,Second_label,Third_label\nA0001,5,,\nA0043,5,2,\nA0549,8,9,7\nA2299,1,,\nA6877,3,,\n"
    )
    return root


def test_dataset_cpsc2018_as_first_released(cpsc):
    c = load_cohort("cpsc2018", cpsc)
    for name in ("A0001", "A0043", "A0549", "A2299"):
        data = loadmat(next(cpsc.rglob(f"{name}.mat")))["ECG"]["data"][0, 0]
        x, mask = c.signal(name)
        assert mask.all() and np.allclose(x, data, atol=1e-6) and c.table.seconds[name] == data.shape[1] / 500
    asserted = {r: set(c.labels.columns[c.labels.loc[r] == 1]) for r in c.labels.index}
    assert asserted == {
        "A0001": {"RBBB"}, "A0043": {"RBBB", "AFIB"}, "A0549": {"STDEV", "PVC"}, "A2299": {"NORM"}, "A6877": {"AVB1"}
    }
    known = set(c.labels.columns[c.labels.loc["A0001"].notna()])
    assert known == {"NORM", "AFIB", "AVB1", "LBBB", "RBBB", "PAC", "PVC", "STDEV"}
    assert (
        c.table.sex.tolist()[:4] == ["M", "F", "M", "F"]
        and np.isnan(c.table.age_days[["A0549", "A2299"]]).all()
        and c.table.age_days["A0001"] == 74 * 365.25
    )
    with pytest.raises(RecordError, match="A6877.mat does not exist") as e: c.signal("A6877")
    assert e.value.kind == "missing signal"


def test_cpsc2018_both_layouts_agree(cpsc, tmp_path):
    # what the conversion made of First=5, Second=2
    challenge(tmp_path, "A0043", 500, 12, ["#Age: 60", "#Sex: Female", "#Dx: 164889003,59118001"], seed=1)
    old, new = load_cohort("cpsc2018", cpsc), load_cohort("cinc", tmp_path)
    assert (
        old.labels.loc["A0043"].equals(new.labels.loc["A0043"])
        and old.table.age_days["A0043"] == new.table.age_days["A0043"]
    )
    assert np.abs(old.signal("A0043")[0] - new.signal("A0043")[0]).max() <= 5.1e-4


def test_cpsc2018_files_that_are_none(cpsc, tmp_path):
    import shutil
    root = Path(shutil.copytree(cpsc, tmp_path / "c"))
    def file(n): return next(root.rglob(f"{n}.mat"))
    file("A0001").write_bytes(file("A0001").read_bytes()[:2000])
    file("A0043").write_bytes(b"")
    savemat(file("A0549"), {"ECG": {"sex": "Male", "age": 5.0, "data": heart(10, 500, 13)}})
    savemat(file("A2299"), {"val": np.zeros((12, 9))})
    c = load_cohort("cpsc2018", root)
    kinds = {}
    for rid in c.table.index:
        with pytest.raises(RecordError) as e: c.raw(rid)
        assert "\n" not in str(e.value) and rid in str(e.value) and str(root) not in str(e.value)
        kinds[rid] = e.value.kind
    assert (
        kinds["A0043"] == "truncated"
        and kinds["A0549"] == "lead names"
        and kinds["A2299"] == "bad header"
        and kinds["A0001"] in ("truncated", "bad header", "unreadable")
    )
    (root / "REFERENCE.csv").unlink()
    with pytest.raises(PeaceError, match="REFERENCE.csv is missing"): load_cohort("cpsc2018", root)


def ptb_record(root: Path, patient: str, name: str, reason: str, seed=0, seconds=32):
    folder = root / patient
    folder.mkdir(parents=True, exist_ok=True)
    d = np.rint(heart(seconds, 1000, 15, seed) * 2000).astype("<i2")
    d[:12].T.tofile(folder / f"{name}.dat")
    d[12:].T.tofile(folder / f"{name}.xyz")
    names = [lead.lower() for lead in LEADS] + ["vx", "vy", "vz"]
    lines = [f"{name} 15 1000 {d.shape[1]}"] + [
        f"{name}.{'dat' if i < 12 else 'xyz'} 16 2000 16 0 {r[0]} {r.sum(dtype=np.int64).astype(np.int16)} 0 {c}"
        for i, (r, c) in enumerate(zip(d, names))
    ]
    lines += [
        "# age: 81", "# sex: female", "# ECG date: 01/10/1990", "# Diagnose:", f"# Reason for admission: {reason}",
        "# Acute infarction (localization): no", "# Additional diagnoses: Diabetes mellitus", "# Hemodynamics:",
        "# Catheterization date: 16-Oct-90", "# Therapy:", "# Catheterization date: n/a"
    ]
    (folder / f"{name}.hea").write_bytes("\r\n".join([*lines, ""]).encode())
    return d / 2000


def test_dataset_ptb_fifteen_channels_at_1000_hz(tmp_path):
    truth = {
        n: ptb_record(tmp_path, p, n, r, seed=i)
        for i, (p, n, r) in enumerate(
            [
                ("patient001", "s0010_re", "Myocardial infarction"),
                ("patient001", "s0014lre", "Myocardial infarction"), ("patient104", "s0306lre", "Healthy control"),
                ("patient285", "s0544_re", "n/a")
            ]
        )
    }
    c = load_cohort("ptb", tmp_path)
    for rid, mv in truth.items():
        x, names, fs = c.raw(rid)
        rec = wfdb.rdrecord(str(c.root / c.table.path[rid]))
        assert (
            fs == 1000
            and names == rec.sig_name
            and len(names) == 15
            and np.allclose(x, rec.p_signal.T, atol=1e-9)
            and np.allclose(x, mv, atol=1e-9)
        )
        twelve, mask = c.signal(rid)
        assert mask.all() and np.allclose(twelve, mv[:12], atol=1e-6)
    assert (
        c.table.patient_id.tolist() == ["patient001", "patient001", "patient104", "patient285"]
        and (c.table.sex == "F").all()
        and (c.table.age_days == 81 * 365.25).all()
    )
    assert (
        not (c.labels == 1).any().any()
        and c.table.report["s0306lre"].startswith("Healthy control")
        and c.table.quality["s0544_re"] == "no diagnosis"
    )
    assert prepare(*c.raw("s0010_re"), SignalSpec(fs=100))[0].shape == (12, 1000)
    (tmp_path / "patient104" / "s0306lre.xyz").unlink()
    with pytest.raises(RecordError, match="s0306lre.xyz does not exist"): c.raw("s0306lre")


@pytest.fixture
def sph(tmp_path):
    (tmp_path / "records").mkdir()
    rows = [
        ("A00001", "22;23", "S00001", 55, "M", 5000), ("A00002", "60+310;147", "S00002", 32, "F", 28000),
        ("A00003", "1;1", "S00002", 32, "F", 5000), ("A00004", "50+346;142", "S00003", 95, "F", 5000)
    ]
    pd.DataFrame(
        [(*r, "2020-03-04") for r in rows], columns=["ECG_ID", "AHA_Code", "Patient_ID", "Age", "Sex", "N", "Date"]
    ).to_csv(tmp_path / "metadata.csv", index=False)
    return tmp_path


def test_dataset_sph_table_and_labels(sph):
    c = load_cohort("sph", sph)
    asserted = {r: set(c.labels.columns[c.labels.loc[r] == 1]) for r in c.labels.index}
    assert asserted == {
        "A00001": {"SBRAD", "SARRH"}, "A00002": {"PVC", "TABN"}, "A00003": {"NORM"}, "A00004": {"AFIB", "LVH"}
    }
    assert (
        c.table.patient_id.nunique() == 3
        and c.table.seconds.tolist() == [10, 56, 10, 10]
        and c.table.sex.tolist() == ["M", "F", "F", "F"]
        and c.table.age_days["A00004"] == 95 * 365.25
    )
    # without the code book the codes stay as they are
    assert len(c.coverage.unmatched) == 0 and c.table.report["A00002"] == "60+310;147"
    (sph / "metadata.csv").unlink()
    with pytest.raises(PeaceError, match="metadata.csv is missing"): load_cohort("sph", sph)


def test_dataset_sph_signals(sph):
    h5py = pytest.importorskip("h5py", reason="h5py, which SPH's files need, is not installed")
    truth = {f"A0000{i}": heart(10 if i != 2 else 56, 500, seed=i).astype(np.float16) for i in (1, 2, 3)}
    for rid, x in truth.items():
        with h5py.File(sph / "records" / f"{rid}.h5", "w") as f: f["ecg"] = x
    c = load_cohort("sph", sph)
    for rid, half in truth.items():
        x, mask = c.signal(rid)
        assert mask.all() and np.array_equal(x, half.astype(np.float32))
    # promises, holds nothing
    with h5py.File(sph / "records" / "A00001.h5", "w") as f:
        f.create_dataset("ecg", shape=(12, 10**9), dtype="f2", chunks=(12, 1000))
    (sph / "records" / "A00002.h5").write_bytes((sph / "records" / "A00002.h5").read_bytes()[:3000])
    (sph / "records" / "A00003.h5").write_bytes(b"not HDF5 at all" * 100)
    kinds = {}
    for rid in c.table.index:
        with pytest.raises(RecordError) as e: c.raw(rid)
        kinds[rid] = e.value.kind
        assert "\n" not in str(e.value) and rid in str(e.value)
    assert kinds == {"A00001": "absurd size", "A00002": "truncated", "A00003": "bad header", "A00004": "missing signal"}


def test_dataset_sph_without_h5py_ends_in_a_sentence(sph, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(PeaceError, match="needs the package h5py"): load_cohort("sph", sph).raw("A00001")


def test_dataset_chapman_as_first_released(tmp_path):
    "Microvolts under lead names, in any order of columns; AF is flutter; a file without names is refused."
    (tmp_path / "ECGData").mkdir()
    (tmp_path / "Diagnostics.csv").write_bytes(
        "\ufeffFileName,Rhythm,Beat,PatientAge,Gender,VentricularRate\r\nMUSE_1,AFIB,RBBB "
        "TWC,85,MALE,117\r\nMUSE_2,AF,NONE,20,FEMALE,67\r\nMUSE_3,SB,LFBBB,66,,53\r\n".encode()
    )
    mv, turned = heart(10, 500), [lead.upper() for lead in reversed(LEADS)]
    pd.DataFrame(mv.T[:, ::-1] * 1000, columns=turned).to_csv(tmp_path / "ECGData" / "MUSE_1.csv", index=False)
    pd.DataFrame(mv.T * 1000).to_csv(tmp_path / "ECGData" / "MUSE_2.csv", index=False, header=False)
    c = load_cohort("chapman", tmp_path)
    x, mask = c.signal("MUSE_1")
    assert mask.all() and np.abs(x - mv).max() < 1e-6 and c.raw("MUSE_1")[1] == turned
    said = {r: set(c.labels.columns[c.labels.loc[r] == 1]) for r in c.labels.index}
    assert (
        said == {"MUSE_1": {"AFIB", "RBBB", "TABN"}, "MUSE_2": {"AFLT"}, "MUSE_3": {"SBRAD", "LAFB"}}
        and c.labels.loc["MUSE_3", "LBBB"] == 0
    )
    assert (
        c.labels[["NORM", "IRBBB"]].isna().all(axis=None)
        and c.table.sex.tolist() == ["M", "F", None]
        and c.table.age_days["MUSE_1"] == 85 * 365.25
        and c.coverage.unmatched.empty
    )
    store = build_store(c, SignalSpec(fs=100), tmp_path / "s", progress=False)
    assert list(store.table.index) == ["MUSE_1"] and store.set_aside.set_index("record_id").kind.to_dict() == {
        "MUSE_2": "lead names", "MUSE_3": "missing signal"
    }
    (tmp_path / "Diagnostics.csv").rename(tmp_path / "Diagnostics.xlsx")
    with pytest.raises(PeaceError, match="Diagnostics.xlsx"): load_cohort("chapman", tmp_path)


def test_dataset_ludb_is_complete(samples):
    c = load_cohort("ludb", samples / "ludb")
    assert (
        len(c) == 200
        and c.table.sex.value_counts().to_dict() == {"M": 115, "F": 85}
        and c.table.age_days["34"] == 90 * 365.25
        and len(c.coverage.unmatched) == 0
    )
    for rid in c.table.index[::40]:
        rec = wfdb.rdrecord(str(c.root / c.table.path[rid]))
        x, mask = c.signal(rid)
        assert mask.all() and rec.sig_name == [lead.lower() for lead in LEADS] and np.allclose(x, rec.p_signal.T, atol=1e-6)
    assert {c.labels.loc["1", "SBRAD"], c.labels.loc["1", "LVH"], c.labels.loc["1", "LAD"]} == {1} and c.labels.loc[
        "4", "IRBBB"
    ] == 1


def test_dataset_ludb_marks_are_the_files(samples, tmp_path):
    marks = read_marks(samples / "ludb" / "data" / "1", ("II", "V6"))
    ann = wfdb.rdann(str(samples / "ludb" / "data" / "1"), "ii")
    two = marks[marks.lead == "II"]
    assert two.peak.tolist() == [s for s, k in zip(ann.sample, ann.symbol) if k in "pNt"] and two.wave.tolist() == [
        {"p": "P", "N": "QRS", "t": "T"}[k] for k in ann.symbol if k in "pNt"
    ]
    assert two.iloc[0].tolist() == ["II", "QRS", 644, 662, 682] and set(marks.lead) == {"II", "V6"}
    odd = read_marks(samples / "ludb" / "data" / "116", ("V1", "V2"))  # six brackets around one T wave
    assert (
        odd.groupby("lead").wave.value_counts().unstack()["T"].max()
        <= odd.groupby("lead").wave.value_counts().unstack()["QRS"].max()
    )
    with pytest.raises(RecordError, match="1.ii does not exist"): read_marks(tmp_path / "1", ("II",))
    (tmp_path / "1.ii").write_bytes(b"\x01\x02\x03")
    try: read_marks(tmp_path / "1", ("II",))
    except RecordError as e: assert "\n" not in str(e)


@pytest.fixture(scope="module")
def leipzig(tmp_path_factory):
    "(root, signals) two studies with different catheters."
    from ecgbench.labels.leipzig_heart_center_ecg import CUSTOM_ANNOTATION_LABELS
    root, signals = tmp_path_factory.mktemp("leipzig"), {}
    custom = pd.DataFrame(CUSTOM_ANNOTATION_LABELS, columns=["label_store", "symbol", "description"])
    studies = {
        "x007": (
            ["ABL12", "RVA12", "CS12", "CS34", "CS56", "CS78", "CS90"], 41,
            [(50, "+", "(N")]
            + [(s, "N", "") for s in range(400, 15_000, 700)]
            + [(15_100, "A", ""), (19_700, "+", "(AVNRT")]
            + [(s, "X", "AVNRT") for s in range(19_800, 40_000, 280)],
        ),
        "x100": (
            ["ABL12", "CS12", "RVA12"], 25,
            [(s, "R", "") for s in range(100, 20_000, 800)] + [(20_500, "V", ""), (21_000, "Q", "")]
        ),
    }
    for i, (name, (extra, seconds, marks)) in enumerate(studies.items()):
        n = 12 + len(extra)
        x = heart(seconds, 977, n, seed=i)
        signals[name] = x
        wfdb.wrsamp(
            name, fs=977, units=["mV"] * n, sig_name=[*LEADS, *extra], p_signal=x.T, fmt=["24"] * n,
            adc_gain=[2000.0] * n, baseline=[0] * n, write_dir=str(root)
        )
        at, symbol, word = zip(*marks)
        wfdb.wrann(
            name, "atr", np.array(at), symbol=list(symbol), aux_note=list(word), custom_labels=custom,
            write_dir=str(root)
        )
    (root / "children-subject-info.csv").write_text(
        "subject_id,gender,age,file_name,ecg_duration,diagnosis,ap_loacation\n007,m,.14.3,x007,0:00:41.000,AVNRT,\n"
    )
    (root / "adults-subject-info.csv").write_text(
        "subject_id,gender,age,file_name,ecg_duration,diagnosis\n100,f,43.5,x100,0:00:25.000,TOF with VT\n"
    )
    return root, signals


def test_dataset_leipzig_windows_are_stretches_of_the_record(leipzig, tmp_path):
    root, signals = leipzig
    c = load_cohort("leipzig", root)
    assert list(c.table.index) == [f"x007@{9770 * i}" for i in range(4)] + [f"x100@{9770 * i}" for i in range(2)]
    for rid, row in c.table.iterrows():
        x, names, fs = c.raw(rid)
        whole = wfdb.rdrecord(str(root / row.path)).p_signal.T
        first = int(rid.split("@")[1])
        assert (
            fs == 977
            and np.allclose(x, whole[:, first : first + 9770], atol=1e-9)
            and np.abs(x - signals[row.path][:, first : first + 9770]).max() <= 2.6e-4
        )
        assert names[-1] == ("CS90" if row.path == "x007" else "RVA12") and row.channels.split("|") == names
    store = build_store(c, SignalSpec(fs=100), tmp_path / "s", progress=False)
    assert len(store) == 6 and store.mask.all() and not len(store.set_aside) and store.spec.n == 1000
    assert (
        abs(c.table.age_days.iloc[0] / 365.25 - 14.3) < 0.01
        and c.table.sex.tolist() == ["M"] * 4 + ["F"] * 2
        and c.table.patient_id.nunique() == 2
    )
    assert len(load_cohort("leipzig", root, seconds=5, every=2.5).table) == 15 + 9


def test_dataset_leipzig_labels_come_from_the_annotations(leipzig):
    L = load_cohort("leipzig", leipzig[0]).labels
    assert (
        L.loc["x007@0", list(LEIPZIG_LABELS)].eq(0).all()
        and L.loc["x007@9770", "PAC"] == 1
        and L.loc["x007@19540", "SVT"] == 1
        and L.loc["x007@29310", "SVT"] == 1
    )
    assert np.isnan(L.loc["x007@29310", "AVB1"]) and L.loc["x100@0", "RBBB"] == 1 and L.loc["x100@9770", "PVC"] == 0
    assert L[[label for label in LABELS if label not in LEIPZIG_LABELS]].isna().all().all()


def test_dataset_leipzig_a_header_of_hours_reserves_nothing(leipzig, tmp_path):
    import shutil, tracemalloc
    root = Path(shutil.copytree(leipzig[0], tmp_path / "l"))
    lines = (root / "x007.hea").read_text().splitlines()
    parts = lines[0].split()
    parts[3] = str(10**9)
    lines[0] = " ".join(parts)
    (root / "x007.hea").write_text("\n".join(lines) + "\n")
    tracemalloc.start()
    with pytest.raises(RecordError, match="truncated"): read_window(root / "x007", 0, 9770)
    with pytest.raises(RecordError, match="may have"): read_window(root / "x007", 0, 10**9)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    with pytest.raises(RecordError, match="are not among them"): read_window(leipzig[0] / "x100", 20_000, 9770)
    with pytest.raises(PeaceError, match="children-subject-info.csv is missing"):
        (root / "children-subject-info.csv").unlink()
        load_cohort("leipzig", root)
    with pytest.raises(PeaceError, match="make no sense"): windows(100, 977, 0)


def test_windows_of_one_person_stay_together():
    "Every window of a study in one part, as everything else that belongs to one patient."
    table = pd.DataFrame(
        {"patient_id": np.repeat([f"x{i:03d}" for i in range(39)], 20), "age_days": 5000.0},
        index=[f"x{i:03d}@{j * 9770}" for i in range(39) for j in range(20)]
    )
    labels = pd.DataFrame(np.random.default_rng(0).random((780, 3)) < .2, index=table.index).astype(float)
    assert split_by_patient(table, labels).groupby(table.patient_id).nunique().max() == 1
