"Files and tables that programs and people really write: the right value, or one sentence; never a wrong value."
import builtins
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import wfdb
from filelock import FileLock
from scipy.io import savemat

from peace_nb import cli
from peace_nb.ages.bands import YEAR
from peace_nb.cohorts.load import load_cohort
from peace_nb.cohorts.records import read_record, read_start, read_window, readable
from peace_nb.cohorts.splits import split_by_fold
from peace_nb.datasets.download import check_space
from peace_nb.files import naming, replacing
from peace_nb.labels.space import LABELS
from peace_nb.methods.registry import build_method
from peace_nb.pipeline.build import build_paper
from peace_nb.settings import PLACE, PeaceError, project_root
from peace_nb.signals import kernels
from peace_nb.signals.prepare import (
    LEADS, Normaliser, SignalSpec, canonical_lead, prepare_flagged, select_leads, short_text
)
from peace_nb.simulation.cohorts import write_simulated_cohort
from peace_nb.store import writer
from peace_nb.store.build import build_store
from peace_nb.training.checkpoint import save_model

FS, SECONDS = 500, 8


@pytest.fixture(scope="module")
def heart() -> np.ndarray:  # (12, T) whole microvolts
    "One heart, each lead of another height, smooth enough to survive any sampling rate used here."
    t = np.arange(FS * SECONDS) / FS
    beat = np.exp(-0.5 * ((t % 0.8 - 0.3) / 0.03) ** 2) + 0.3 * np.exp(-0.5 * ((t % 0.8 - 0.55) / 0.06) ** 2)
    return np.rint(1000 * np.linspace(-1, 1.6, 12)[:, None] * beat + 50 * np.arange(12)[:, None])


def write(folder: Path, uv: np.ndarray, name="r", names=LEADS, gain="1000(0)/mV", fs="500", length=None, end="",
          fmt="16", frame=1, skew=None, sums=True, encoding="utf-8", counts=None) -> Path:
    "A format-16 record by hand: `uv` (C, T) microvolts, or `counts` as they go to the file."
    counts = uv.astype(int) if counts is None else counts
    gains = [gain] * len(counts) if isinstance(gain, str) else gain
    skew = skew or [0] * len(counts)
    late = np.array([np.roll(c, s * frame) for c, s in zip(counts, skew)])
    T = late.shape[1] // frame
    lines = [f"{name} {len(counts)} {fs}{f' {T}' if length is None else f' {length}' if length != '' else ''}{end}"]
    for c, n, g, s in zip(late, names, gains, skew):
        more = (f"x{frame}" if frame > 1 else "") + (f":{s}" if s else "")
        total = int(np.int64(c.sum()) % 65536) if sums else 0
        lines.append(f"{name}.dat {fmt}{more} {g} 16 0 {c[0] if sums else 0} {total} 0 {n}")
    (folder / f"{name}.hea").write_bytes(("\n".join(lines) + "\n").encode(encoding))
    late.reshape(len(late), T, frame).transpose(1, 0, 2).astype("<i2").tofile(folder / f"{name}.dat")
    return folder / name


def leads_of(path):
    "Twelve leads in millivolts, and the rate."
    signal, names, fs = read_record(path)
    return select_leads(signal, names)[0], fs


def agrees(path, uv, fs=FS, atol=0.001):
    "What is read are these microvolts at this rate, to a microvolt."
    x, rate = leads_of(path)
    assert rate == fs and x.shape == uv.shape
    np.testing.assert_allclose(x, uv / 1000, atol=atol)


def refusal(path) -> PeaceError:
    with pytest.raises(PeaceError) as e: read_record(path)
    assert "\n" not in str(e.value) and str(path) in str(e.value)
    return e.value


UNITS = {"mV": "1000(0)/mV", "uV": "1(0)/uV", "micro sign": "1(0)/µV", "Greek mu": "1(0)/μV", "V": "1000000(0)/V",
         "capital E": "1.0E+03(0)/mV", "small e": "1e3(0)/mV", "baseline 0.0": "1000.0(0.0)/mV", "no unit": "1000",
         "word": "1(0)/microvolts", "upside down": "-1000(0)/mV"}


@pytest.mark.parametrize("unit", UNITS)
def test_one_heart_in_any_unit(tmp_path, heart, unit):
    counts = -heart.astype(int) if unit == "upside down" else None
    agrees(write(tmp_path, heart, gain=UNITS[unit], counts=counts), heart)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
@pytest.mark.parametrize("end", ["", " 12:00:00 2006", " 12:00:00 12/31/2006", " 25:61:00"])
def test_one_heart_in_any_encoding_and_at_any_date(tmp_path, heart, encoding, end):
    path = write(tmp_path, heart, gain="1(0)/µV", encoding=encoding, end=end)
    with open(f"{path}.hea", "ab") as f: f.write("# Größe: 1,80 m, Temperatur 36 °C\n".encode(encoding.removesuffix("-sig")))
    agrees(path, heart)


@pytest.mark.parametrize("baseline", [-3000, 0, 77])
def test_one_heart_with_any_gain_and_baseline_for_each_lead(tmp_path, heart, baseline):
    gains = [500 + 250 * (i % 3) for i in range(12)]
    counts = np.array([np.rint(h / 1000 * g) + baseline + i for i, (h, g) in enumerate(zip(heart, gains))]).astype(int)
    path = write(tmp_path, heart, counts=counts, gain=[f"{g}({baseline + i})/mV" for i, g in enumerate(gains)])
    agrees(path, heart, atol=0.5 / min(gains) + 1e-6)


@pytest.mark.parametrize("unit", ["1(0)/mV", "1000(0)/V", "1(0)/V"])
def test_voltages_beyond_physiology_are_refused_as_a_unit(tmp_path, heart, unit):
    e = refusal(write(tmp_path, heart, gain=unit))
    assert e.kind == "unit" and "cannot be right" in str(e)


@pytest.mark.parametrize("unit", ["1(0)/Â\u00b5X", "1(0)/mmHg", "1(0)/?V"])
def test_an_unknown_unit_is_refused(tmp_path, heart, unit):
    e = refusal(write(tmp_path, heart, gain=unit))
    assert e.kind == "unit" and "is not a voltage" in str(e)


def test_an_offset_or_a_moment_at_the_rail_is_no_wrong_unit(tmp_path, heart):
    uv = heart.copy()
    uv[3] += 280_000                # a direct-coupled electrode
    uv[5, 100:110] = 400_000        # twenty milliseconds at the rail
    agrees(write(tmp_path, uv, counts=uv.astype(int) // 20, gain="50(0)/mV"), uv, atol=0.021)


CABRERA = ("aVL", "I", "-aVR", "II", "aVF", "III", *LEADS[6:])


@pytest.mark.parametrize("minus", ["-", "−", "–", "Lead -"])
def test_a_minus_before_a_lead_turns_it(tmp_path, heart, minus):
    uv = np.array([-heart[3] if n == "-aVR" else heart[LEADS.index(n)] for n in CABRERA])
    agrees(write(tmp_path, uv, names=[n.replace("-", minus) for n in CABRERA]), heart)
    twice = write(tmp_path, uv, "s", names=[n.replace("-", minus) if n != "V6" else "aVR" for n in CABRERA])
    with pytest.raises(PeaceError, match="aVR is named more than once"): prepare_flagged(*read_record(twice))


NAMES = {"prefix": "ECG {}", "German": "EKG {}", "underscore": "ECG_{}", "Lead": "Lead {}", "hyphen": "Lead-{}",
         "MDC": "MDC_ECG_LEAD_{}", "remark": "{} # noisy"}


@pytest.mark.parametrize("style", NAMES)
def test_one_heart_under_any_names(tmp_path, heart, style):
    agrees(write(tmp_path, heart, names=[NAMES[style].format(l) for l in LEADS]), heart)


def test_a_raised_letter_is_another_lead():
    assert [canonical_lead(n) for n in ("Ⅰ", "Ⅱ", "DIII", "V3ᴿ", "V3R", "−V3")] == [
        "I", "II", "III", "V3ᴿ", "V3R", "-V3"
    ]


@pytest.mark.parametrize("frame", [2, 4, 10])
def test_several_samples_a_frame_are_as_many_samples(tmp_path, heart, frame):
    path = write(tmp_path, heart, fs=f"{FS / frame:g}", frame=frame)
    agrees(path, heart)
    data = bytearray(path.with_suffix(".dat").read_bytes())
    data[999] ^= 1
    path.with_suffix(".dat").write_bytes(bytes(data))
    assert refusal(f"{path}.dat"[:-4]).kind == "checksum"


def test_leads_at_different_rates_come_to_the_highest(tmp_path, heart):
    halves = heart[:, ::2].astype(int)
    lines, frames = ["r 13 250 2000"], []
    for i, name in enumerate([*LEADS, "RESP"]):
        slow, unit = i >= 6, "1(0)/NU" if name == "RESP" else "1000(0)/mV"
        c = halves[i % 12] if slow else heart[i].astype(int)
        lines.append(f"r.dat 16{'' if slow else 'x2'} {unit} 16 0 {c[0]} {c.sum() % 65536} 0 {name}")
        frames.append(c.reshape(2000, -1))
    (tmp_path / "r.hea").write_text("\n".join(lines) + "\n")
    np.hstack(frames).astype("<i2").tofile(tmp_path / "r.dat")
    x, fs = leads_of(tmp_path / "r")
    assert fs == FS and "RESP" not in read_record(tmp_path / "r")[1]
    np.testing.assert_allclose(x[:6], heart[:6] / 1000, atol=1e-6)
    np.testing.assert_allclose(x[6:, 50:-50], heart[6:, 50:-50] / 1000, atol=0.003)


@pytest.mark.parametrize("frame", [1, 4])
def test_a_skewed_lead_is_moved_back_and_its_sum_is_that_of_the_file(tmp_path, heart, frame):
    path = write(tmp_path, heart, fs=f"{FS / frame:g}", frame=frame, skew=[0, 5] + [0] * 10)
    x, fs = leads_of(path)
    lost = 5 * frame
    np.testing.assert_allclose(x[:, :-lost], heart[:, :-lost] / 1000, atol=1e-6)
    assert fs == FS and np.isnan(x[1, -lost:]).all() and np.isfinite(x[[0, 2]]).all()


def segments(folder, heart, first=None, second=None, layout=None, total=None, lengths=(2000, 2000)) -> Path:
    "A record in two segments, each written with its own options."
    write(folder, heart[:, :2000], "ra", **(first or {}))
    write(folder, heart[:, 2000:] if "uv" not in (second or {}) else second.pop("uv"), "rb", **(second or {}))
    parts = [("ra", lengths[0]), ("rb", lengths[1])]
    if layout:
        (folder / "rl.hea").write_text("rl 12 500 0\n" + "".join(f"~ 0 {layout} 16 0 0 0 0 {l}\n" for l in LEADS))
        parts.insert(0, ("rl", 0))
    head = f"r/{len(parts)} 12 500 {sum(lengths) if total is None else total}\n"
    (folder / "r.hea").write_text(head + "".join(f"{n} {k}\n" for n, k in parts))
    return folder / "r"


SEGMENTS = {"alike": ({}, {}, None), "second in uV": ({}, {"gain": "1(0)/uV"}, None),
            "first in µV": ({"gain": "1(0)/µV"}, {}, None), "layout in mV": ({"gain": "1(0)/uV"}, {}, "1000(0)/mV"),
            "layout in uV": ({}, {"gain": "1(0)/uV"}, "1(0)/uV"),
            "other spelling": ({}, {"names": [l.lower() for l in LEADS]}, None)}


@pytest.mark.parametrize("case", SEGMENTS)
def test_every_segment_has_its_own_units(tmp_path, heart, case):
    first, second, layout = SEGMENTS[case]
    agrees(segments(tmp_path, heart, first, second, layout), heart)


def test_leads_are_put_together_by_name(tmp_path, heart):
    backwards = {"uv": heart[::-1, 2000:], "names": LEADS[::-1]}
    agrees(segments(tmp_path, heart, {}, backwards), heart)
    uv = heart[:, 2000:] * np.where(np.array(LEADS) == "aVR", -1, 1)[:, None]
    agrees(segments(tmp_path, heart, {}, {"uv": uv, "names": [l.replace("aVR", "-aVR") for l in LEADS]}), heart)


def test_a_gap_between_segments_is_missing(tmp_path, heart):
    write(tmp_path, heart[:, :1500], "ra")
    write(tmp_path, heart[:, 2500:], "rb", fs="125", frame=4)
    (tmp_path / "r.hea").write_text("r/3 12 500 4000\nra 1500\n~ 1000\nrb 1500\n")
    assert refusal(tmp_path / "r").kind == "sampling rate"      # rb counts in frames of another rate
    write(tmp_path, heart[:, 2500:], "rb")
    x, _ = leads_of(tmp_path / "r")
    assert np.isnan(x[:, 1500:2500]).all()
    np.testing.assert_allclose(x[:, 2500:], heart[:, 2500:] / 1000, atol=1e-6)


SEGMENT_FAULTS = {"other rate": ({"second": {"fs": "250"}}, "sampling rate"),
                  "other length": ({"lengths": (2000, 1999)}, "bad header"),
                  "other total": ({"total": 5000}, "bad header"),
                  "other leads": ({"second": {"names": [*LEADS[:11], "V7"]}}, "lead names"),
                  "a unit nobody can mean": ({"second": {"gain": "1(0)/mV"}}, "unit")}


@pytest.mark.parametrize("case", SEGMENT_FAULTS)
def test_segments_that_do_not_fit_are_refused(tmp_path, heart, case):
    options, kind = SEGMENT_FAULTS[case]
    with pytest.raises(PeaceError) as e: read_record(segments(tmp_path, heart, **options))
    assert e.value.kind == kind, str(e.value)


def test_a_damaged_segment_is_noticed(tmp_path, heart):
    path = segments(tmp_path, heart)
    data = bytearray((tmp_path / "rb.dat").read_bytes())
    data[1000] ^= 64
    (tmp_path / "rb.dat").write_bytes(bytes(data))
    with pytest.raises(PeaceError, match="rb.dat is damaged"): read_record(path)


@pytest.mark.parametrize("length", [0, ""])
def test_a_length_that_is_not_stated_is_that_of_the_file(tmp_path, heart, length):
    agrees(write(tmp_path, heart, length=length), heart)
    agrees(write(tmp_path, heart, "t", length=length, end="" if length == "" else " 12:00:00"), heart)
    x, _, _ = read_window(write(tmp_path, heart, length=length), 1000, 2500)
    np.testing.assert_allclose(x, heart[:, 1000:3500] / 1000, atol=1e-6)


def test_a_file_longer_than_announced_needs_checksums(tmp_path, heart):
    agrees(write(tmp_path, heart, sums=False), heart)
    e = refusal(write(tmp_path, heart, length=3500, sums=False))
    assert e.kind == "wrong file" and "longer than announced" in str(e)
    path = write(tmp_path, heart, length=3500, sums=False)
    path.with_suffix(".dat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(128) + path.with_suffix(".dat").read_bytes())
    assert "MATLAB 5" in str(refusal(path))


def test_files_that_alternate_and_channels_without_a_file(tmp_path, heart):
    lines = ["r 12 500 4000"]
    for i, l in enumerate(LEADS):
        c = heart[i].astype(int)
        lines.append(f"{'ab'[i % 2]}.dat 16 1000(0)/mV 16 0 {c[0]} {c.sum() % 65536} 0 {l}")
    lines[-1] = "~ 0 1000(0)/mV 16 0 0 0 0 V6"
    (tmp_path / "r.hea").write_text("\n".join(lines) + "\n")
    heart[0::2].T.astype("<i2").tofile(tmp_path / "a.dat")
    heart[1:10:2].T.astype("<i2").tofile(tmp_path / "b.dat")
    x, names, _ = read_record(tmp_path / "r")
    np.testing.assert_allclose(x[:11], heart[:11] / 1000, atol=1e-6)
    assert np.isnan(x[11]).all() and names == list(LEADS)


@pytest.fixture()
def cohort(tmp_path):
    write_simulated_cohort("zzu-pecg", tmp_path / "z", 12, seed=3, damaged=0.)
    return load_cohort("zzu-pecg", tmp_path / "z")


def forbid(monkeypatch, file: Path):
    "The system refuses to open this file, whoever asks (permissions do not stop an administrator)."
    real, real_numpy = builtins.open, np.fromfile

    def guarded(call):
        def opened(name, *args, **kwargs):
            if isinstance(name, (str, os.PathLike)) and Path(name) == file:
                raise PermissionError(errno.EACCES, "Permission denied", str(name))
            return call(name, *args, **kwargs)
        return opened
    monkeypatch.setattr(builtins, "open", guarded(real))
    monkeypatch.setattr(io, "open", guarded(real))
    monkeypatch.setattr(np, "fromfile", guarded(real_numpy))


@pytest.mark.parametrize("end", [".dat", ".hea"])
@pytest.mark.parametrize("quick", [False, True])
def test_one_unreadable_file_is_set_aside(cohort, tmp_path, monkeypatch, end, quick):
    if quick and not kernels.warm(): pytest.skip("there is no compiler on this machine")
    monkeypatch.setattr("peace_nb.store.build.warmed", lambda: quick)
    rid = cohort.table.index[3]
    forbid(monkeypatch, cohort.root / f"{cohort.table.path[rid]}{end}")
    store = build_store(cohort, SignalSpec(fs=100), tmp_path / "s", progress=False)
    aside = store.set_aside.iloc[0]
    assert len(store) == len(cohort) - 1 and aside.record_id == rid and aside.kind == "unreadable"
    assert rid in aside.reason and "ermission" in aside.reason


@pytest.mark.parametrize("quick", [False, True])
def test_a_wrong_unit_and_a_turned_lead_are_seen_by_both_ways(cohort, tmp_path, monkeypatch, quick):
    if quick and not kernels.warm(): pytest.skip("there is no compiler on this machine")
    monkeypatch.setattr("peace_nb.store.build.warmed", lambda: quick)
    stems = [cohort.root / p for p in cohort.table.path]
    hea = stems[0].with_suffix(".hea")
    hea.write_text(hea.read_text().replace("/mV", "/V"))
    hea = stems[1].with_suffix(".hea")
    plain = build_store(cohort, SignalSpec(fs=100), tmp_path / "plain", progress=False)
    hea.write_text(re.sub("(?m) AVR$", " -aVR", hea.read_text()))
    turned = build_store(load_cohort("zzu-pecg", cohort.root), SignalSpec(fs=100), tmp_path / "turned", progress=False)
    assert plain.set_aside.kind.tolist() == turned.set_aside.kind.tolist() == ["unit"]
    a, b = (s.array[0].astype(int) for s in (plain, turned))
    assert np.abs(a[3]).max() > 50 and np.abs(b[3] + a[3]).max() <= 1
    np.testing.assert_array_equal(np.delete(b, 3, 0), np.delete(a, 3, 0))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    "Simulated cohorts, written once."
    home = tmp_path_factory.mktemp("cohorts")
    for name in ("ptb-xl", "zzu-pecg", "mimic-iv-ecg"): write_simulated_cohort(name, home / name, 20, seed=4, damaged=0.)
    return home


@pytest.fixture
def changed(written, tmp_path):
    "Load a cohort after its table was changed: `changed(name, file, change)`, where `change` edits a frame of text."
    def load(name, file, change):
        for source in (written / name).rglob("*.csv"):
            to = tmp_path / source.relative_to(written / name)
            to.parent.mkdir(exist_ok=True)
            shutil.copy(source, to)
        frame = pd.read_csv(tmp_path / file, dtype=str)
        change(frame)
        frame.to_csv(tmp_path / file, index=False)
        return load_cohort(name, written / name), load_cohort(name, tmp_path), frame
    return load


def test_text_identifiers_are_patients(changed):
    def rename(frame): frame["patient_id"] = "p" + frame["patient_id"].str.removesuffix(".0")
    before, after, frame = changed("ptb-xl", "ptbxl_database.csv", rename)
    assert after.table.patient_id.tolist() == ["p" + p for p in before.table.patient_id]
    assert after.table.patient_id.nunique() < len(after) and (after.table.quality == before.table.quality).all()


ID = {"ptb-xl": ("ptbxl_database.csv", "patient_id"), "zzu-pecg": ("AttributesDictionary.csv", "Patient_ID"),
      "mimic-iv-ecg": ("record_list.csv", "subject_id")}


@pytest.mark.parametrize("name", ID)
def test_a_missing_identifier_is_nobody_else_and_is_said(changed, name):
    file, column = ID[name]

    def blank(frame): frame.loc[[0, 1], column] = ["", np.nan]
    before, after, _ = changed(name, file, blank)
    ids = after.table.index
    assert after.table.patient_id.iloc[:2].tolist() == [f"record {i}" for i in ids[:2]]
    assert after.table.quality.iloc[:2].str.contains("patient not stated").all()
    assert after.table.iloc[2:].equals(before.table.iloc[2:])


def test_odd_ages_of_zzu_are_unknown_and_said(changed):
    odd = ["3y", "18m", "1.5y", "24h", "5 years", "572", "12d"]

    def ages(frame): frame.loc[:6, "Age"] = odd
    before, after, _ = changed("zzu-pecg", "AttributesDictionary.csv", ages)
    assert after.table.age_days.iloc[:7].tolist()[6] == 12 and after.table.age_days.iloc[:6].isna().all()
    for i, text in enumerate(odd[:6]): assert f"age {text} is unreadable" in after.table.quality.iloc[i]
    assert after.table.iloc[7:].equals(before.table.iloc[7:])


def test_one_odd_cell_costs_no_other_cell_of_ptbxl(changed):
    cells = {"age": "62 years", "sex": "male", "strat_fold": "1.5", "scp_codes": "{'NORM': '100'}"}

    def spoil(frame):
        for i, (column, cell) in enumerate(cells.items()): frame.loc[i, column] = cell
        frame.loc[4, "scp_codes"], frame.loc[5, "patient_id"] = "{'NORM': None}", "9" * 25
    before, after, _ = changed("ptb-xl", "ptbxl_database.csv", spoil)
    table = after.table
    assert np.isnan(table.age_days.iloc[0]) and "age 62 years is unreadable" in table.quality.iloc[0]
    assert table.sex.iloc[1] == "M" and pd.isna(table.fold.iloc[2]) and "fold 1.5 does not exist" in table.quality.iloc[2]
    assert after.labels.iloc[3:5].isna().all(axis=None) and (table.quality.iloc[3:5] == "labels unreadable").all()
    assert table.patient_id.iloc[5] == "9" * 25
    assert table.iloc[6:].equals(before.table.iloc[6:]) and after.labels.iloc[6:].equals(before.labels.iloc[6:])
    assert (table.sex == before.table.sex).drop(table.index[1]).all()
    with pytest.raises(PeaceError, match="1 records have no fold"): split_by_fold(table)


def test_one_odd_cell_costs_no_other_record_of_zzu(changed):
    def spoil(frame): frame.loc[0, "AHA_code"], frame.loc[1, "Lead"] = "'A1,C21'", np.nan
    before, after, _ = changed("zzu-pecg", "AttributesDictionary.csv", spoil)
    assert after.labels.iloc[0].isna().all() and "labels unreadable" in after.table.quality.iloc[0]
    assert np.isnan(after.table.leads.iloc[1]) and "number of leads not stated" in after.table.quality.iloc[1]
    assert after.labels.iloc[1:].equals(before.labels.iloc[1:])
    assert after.table.iloc[2:].drop(columns="leads").equals(before.table.iloc[2:].drop(columns="leads"))


def test_a_text_among_the_subjects_of_mimic_costs_no_other_age(changed):
    def spoil(frame): frame.loc[0, "subject_id"] = "somebody"
    before, after, _ = changed("mimic-iv-ecg", "record_list.csv", spoil)
    assert after.table.patient_id.iloc[0] == "somebody" and np.isnan(after.table.age_days.iloc[0])
    assert after.table.iloc[1:].equals(before.table.iloc[1:])


@pytest.mark.parametrize("age, days", [("74", 74 * YEAR), ("74Y", None), ("062Y", None), (">89", None), ("NaN", 0)])
def test_ages_of_the_challenges(tmp_path, heart, age, days):
    path = write(tmp_path, heart, "E00001")
    with open(f"{path}.hea", "a") as f: f.write(f"#Age: {age}\n#Sex: Male\n#Dx: 426783006\n")
    row = load_cohort("cinc", tmp_path).table.iloc[0]
    assert row.age_days == days if days else np.isnan(row.age_days)
    assert row.quality == ("" if days is not None else f"age {age} is unreadable")


def test_records_of_ptbxl_in_the_challenges_do_not_pass_for_patients(tmp_path, heart):
    path = write(tmp_path, heart, "HR00001")
    with open(f"{path}.hea", "a") as f: f.write("#Age: 300\n#Sex: Male\n#Dx: 426783006\n")
    row = load_cohort("cinc", tmp_path).table.iloc[0]
    assert row.quality == "patient not stated" and row.age_days == 90 * YEAR


def test_microvolts_in_a_matlab_struct_are_refused(tmp_path, heart):
    savemat(tmp_path / "A0001.mat", {"ECG": {"sex": "Male", "age": 50.0, "data": heart}})
    savemat(tmp_path / "A0002.mat", {"ECG": {"sex": "Male", "age": 50.0, "data": heart / 1000}})
    (tmp_path / "REFERENCE.csv").write_text("Recording,First_label,Second_label,Third_label\na0001.MAT,1,,\nA0002,5,,\n")
    cohort = load_cohort("cpsc2018", tmp_path)
    assert cohort.table.index.tolist() == ["A0001", "A0002"] and cohort.labels.NORM.iloc[0] == 1
    np.testing.assert_allclose(cohort.raw("A0002")[0], heart / 1000)
    with pytest.raises(PeaceError, match="its unit or its gain cannot be right"): cohort.raw("A0001")


def test_names_of_records_and_files_that_cannot_be(tmp_path, heart):
    for name in ("", ".", ".."):
        with pytest.raises(PeaceError, match="is a folder and no record"): read_record(name)
    path = write(tmp_path, heart)
    text = path.with_suffix(".hea").read_text()
    for old, new, words in (("r.dat", "d/r.dat", "a file outside its folder"), (" 16 1000", " 99 1000", "format 99"),
                            ("/mV", "/mV,", "cannot be taken apart"), ("1000(0)", "1000 (0)", "cannot be taken apart"),
                            ("(0)", "(0.5)", "no whole number")):
        path.with_suffix(".hea").write_text(text.replace(old, new))
        assert words in str(refusal(path)), str(refusal(path))


@pytest.mark.parametrize("fmt", ["80", "212", "16", "24", "32", "508", "516", "524"])
def test_every_format_as_wfdb_reads_it(tmp_path, heart, fmt):
    mv = heart.T[:1500 * 2, :3] / 1000 / (20 if fmt in ("80", "508") else 1)
    mv[7, 1] = np.nan
    gain = {"80": 400, "508": 400, "212": 500}.get(fmt, 1000)
    wfdb.wrsamp("w", fs=FS, units=["mV"] * 3, sig_name=list(LEADS[:3]), fmt=[fmt] * 3, write_dir=str(tmp_path),
                p_signal=mv, adc_gain=[gain] * 3, baseline=[3] * 3)
    x, names, fs = read_record(tmp_path / "w")
    np.testing.assert_array_equal(x, wfdb.rdrecord(str(tmp_path / "w")).p_signal.T)
    assert fs == FS and names == list(LEADS[:3]) and np.isnan(x[1, 7]) and np.isnan(x).sum() == 1
    np.testing.assert_allclose(x.T, mv, atol=0.5 / gain + 1e-9)


# What the command line says and does: faults of the user, of the system, and Ctrl-C


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    "A network that has learnt nothing: what is printed around its answer is what counts here."
    folder = tmp_path_factory.mktemp("model")
    blank = Normaliser(np.zeros(12, np.float32), np.ones(12, np.float32))
    return save_model(folder, build_method("ECG-only", LABELS, encoder="tiny"), SignalSpec(fs=100), blank)


@pytest.fixture(scope="module")
def adults(tmp_path_factory) -> Path:
    "PTB-XL's layout with one record cut, one gone, and one that has two leads alone."
    root = tmp_path_factory.mktemp("adults") / "ptb-xl"
    write_simulated_cohort("ptb-xl", root, 40, seed=3, damaged=0.)
    cut, gone, two = sorted(root.glob("records500/*/*.hea"))[:3]
    with open(cut.with_suffix(".dat"), "r+b") as f: f.truncate(100)
    gone.with_suffix(".dat").unlink()
    lines = two.read_text().splitlines()
    flat = [re.sub(r"\S+$", f"x{i}", line) if i > 2 else line for i, line in enumerate(lines) if line[0] != "#"]
    two.write_text("\n".join(flat) + "\n")
    return root


@pytest.fixture()
def nb(monkeypatch, capsys):
    "`peace-nb ARGS` in this process: (exit code, standard output, one line of the error stream)."
    def call(*args):
        monkeypatch.setattr("sys.argv", ["peace-nb", *map(str, args)])
        with pytest.raises(SystemExit) as stop: cli.main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err
    return call


def one_sentence(err: str, *words) -> str:
    assert err.startswith("peace-nb: ") and len(err.strip().splitlines()) == 1, err
    for word in words: assert str(word) in err, err
    return err


@pytest.mark.parametrize("leads, code", [(("MLII", "V5"), 2), (("I", "II"), 2), (LEADS[:6], 2),
                                         (("I", "II", *LEADS[6:]), 0), (LEADS[:9], 0), (LEADS, 0)])
def test_a_record_with_too_few_leads_is_refused(tmp_path, heart, model, nb, leads, code):
    path = write(tmp_path, heart[:len(leads)], names=leads)
    found, out, err = nb("predict", path, "--model", model)
    assert found == code
    if code: one_sentence(err, path, f"{len([l for l in leads if l in LEADS])} of the 12 leads", "fewer than 8")
    else: assert ("Models are trained on twelve leads" in out) == (len(leads) < 12)


def test_nine_leads_of_a_child_need_no_remark(tmp_path, heart, model, nb):
    nine = [i for i, l in enumerate(LEADS) if l not in ("V2", "V4", "V6")]
    _, out, _ = nb("predict", write(tmp_path, heart[nine], names=[LEADS[i] for i in nine]), "--model", model)
    assert "Models are trained" not in out and "missing:V2 V4 V6" in out


def test_what_was_not_read_is_said(tmp_path, heart, model, nb):
    path = write(tmp_path, np.tile(heart, 2))
    _, out, _ = nb("predict", path, "--model", model, "--age", 0.1)
    assert "does not read the patient's age" in out and "Only the first 10 s are read" in out
    _, out, _ = nb("predict", path, "--model", model, "--age", 0.1, "--json")
    assert len(json.loads(out)["remarks"]) == 2
    _, out, _ = nb("predict", path, "--model", model, "--age", 0.1, "--frame")
    assert "does not read" not in out


def test_the_answer_comes_before_the_picture(tmp_path, heart, model, nb):
    call = ("predict", write(tmp_path, heart), "--model", model, "--plot")
    code, out, err = nb(*call, tmp_path)
    assert code == 2 and "no medical device" in out and one_sentence(err, tmp_path, "is a folder")
    (tmp_path / "file").touch()
    code, out, err = nb(*call, tmp_path / "file" / "ecg.png")
    assert code == 2 and "no medical device" in out and one_sentence(err, tmp_path / "file", "cannot be read or written")
    code, out, err = nb(*call, tmp_path / "ecg.gif")
    assert code == 2 and not out and one_sentence(err, "ecg.gif must end in .png")
    for name, start in (("ecg.pdf", b"%PDF"), ("ecg.svg", b"<?xml"), ("ecg.PNG", b"\x89PNG")):
        assert nb(*call, tmp_path / name)[0] == 0 and (tmp_path / name).read_bytes().startswith(start)


def test_ten_seconds_of_a_day(tmp_path, heart, model, nb):
    samples = 26 * 3600 * FS
    path = write(tmp_path, np.tile(heart, 4), length=samples, sums=False)
    with open(f"{path}.dat", "r+b") as f: f.truncate(samples * 24)
    with pytest.raises(PeaceError, match="samples a record may have"): read_record(path)
    signal, _, fs, seconds = read_start(path, 12)
    np.testing.assert_allclose(signal, np.tile(heart, 2)[:, :12 * FS + 1] / 1000, atol=1e-9)
    assert seconds == 26 * 3600 and signal.shape[1] == 12 * FS + 1
    code, out, _ = nb("predict", path, "--model", model)
    assert code == 0 and "26.0 h" in out and "Only the first 10 s are read" in out
    with open(f"{path}.dat", "r+b") as f: f.truncate(samples)
    code, _, err = nb("predict", path, "--model", model)
    assert code == 2 and one_sentence(err, "is truncated")


def test_a_window_of_frames(tmp_path, heart):
    path = write(tmp_path, heart, fs="125", frame=4)
    signal, _, fs = read_window(path, 250, 500)
    assert fs == FS
    np.testing.assert_allclose(signal, heart[:, 1000:3000] / 1000, atol=1e-9)


def test_evaluate_hides_nothing(adults, model, nb, tmp_path):
    code, out, _ = nb("evaluate", "ptb-xl", "--root", adults.parent, "--model", model, "--bootstrap", 20, "--jobs", 1)
    lines = out.splitlines()
    assert code == 0 and "set_aside 2" in lines[0] and "NaN" not in out and "bacc" not in out
    for words in ("set aside, truncated: 1 (first: ", "set aside, missing signal: 1 (first: ", "quality: missing 1",
                  "not scored, for too few leads: 1", "positive patients only", "note: macro: mean of"):
        assert words in out, words
    code, out, _ = nb("evaluate", "ptb-xl", "--root", adults, "--model", model, "--bootstrap", 0, "--json", "--jobs", 1)
    found = json.loads(out)
    assert found["set_aside_kinds"] == {"truncated": 1, "missing signal": 1} and found["too_few_leads"] == 1
    assert len(found["set_aside_records"]) == 2 and "is truncated" in found["set_aside_records"][0]["reason"]
    assert not {"lo", "hi", "f1", "bacc"} & set(found["metrics"][0]) and found["quality"]["missing"] == 1
    assert found["metrics"][0]["n"] <= found["records"] - 1
    code, _, err = nb("evaluate", "ptb-xl", "--root", adults, "--model", model, "--bootstrap", -5)
    assert code == 2 and "Traceback" not in err
    with pytest.raises(PeaceError, match="bootstrap is -5"): cli.evaluate_cohort("ptb-xl", adults, model, -5)


def test_evaluate_says_that_nothing_can_be_scored(adults, model, nb, monkeypatch):
    from peace_nb.cohorts import load
    whole = load.load_cohort

    def alike(*args, **kwargs):
        found = whole(*args, **kwargs)
        found.labels[:] = 0.0
        return found
    monkeypatch.setattr(load, "load_cohort", alike)
    code, out, _ = nb("evaluate", "ptb-xl", "--root", adults, "--model", model, "--jobs", 1)
    assert code == 0 and "no label can be scored" in out and "Empty DataFrame" not in out


FIRST = {"a split that is not there": (("--split", "nowhere.csv"), "nowhere.csv cannot be read or written: it does not"),
         "a split without its columns": (("--split", "wrong.csv"), "wrong.csv has no column 'record_id'"),
         "a split of others": (("--split", "other.csv"), "other.csv names no record of ptb-xl"),
         "no checkpoint": (("--model", "nowhere"), "nowhere holds no model"),
         "no store": (("--other", "nowhere"), "nowhere is not a signal store"),
         "no checkout": ((), "--no-report prepares the store alone"),
         "endless": (("--seconds", "inf"), "must be positive and finite"),
         "no processes": (("--jobs", "0"), "--jobs")}


@pytest.mark.parametrize("case", FIRST)
def test_what_can_be_known_before_is_said_before(adults, tmp_path, monkeypatch, nb, case):
    monkeypatch.chdir(tmp_path)
    Path("wrong.csv").write_text("record,part\na,train\n")
    Path("other.csv").write_text("record_id,split\na,train\n")
    args, words = FIRST[case]
    report = () if case == "no checkout" else ("--no-report",)
    code, _, err = nb("prepare", "ptb-xl", "--root", adults, "--store", "stores", "--fs", 100, *report, *args)
    assert code == 2 and words in err and not list(tmp_path.glob("stores/ptb-xl*"))
    if case != "no processes": one_sentence(err, words)


ROOTLESS = {"cinc": "or set PEACE_CINC_2021 or PEACE_CINC_2020", "sph": "sph is not among the data sets",
            "ptb-xl": "or set PEACE_PTB_XL"}


@pytest.mark.parametrize("name", ROOTLESS)
def test_a_data_set_that_nobody_has_named(tmp_path, monkeypatch, nb, name):
    for variable in [v for v in os.environ if v.startswith("PEACE_")]: monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    code, _, err = nb("prepare", name, "--store", "stores")
    assert code == 2 and one_sentence(err, ROOTLESS[name])
    monkeypatch.setenv("PEACE_CINC_2021", str(tmp_path))
    if name == "cinc": assert cli._root_of("cinc", None) == tmp_path


def test_wrong_words_in_the_commands_of_the_paper(nb, monkeypatch):
    assert one_sentence(nb("run-step", "table-1", "nosuch")[2], "name=value")
    assert one_sentence(nb("run-step", "table-1", "profile=demo")[2], "name=value")
    assert one_sentence(nb("run-step", "nosuch")[2], "no step 'nosuch'")
    code, _, err = nb("paper", "--cores", 0)
    assert code == 2 and "Traceback" not in err
    with pytest.raises(PeaceError, match="cores is 0"): build_paper("smoke", 0)
    monkeypatch.setenv("PEACE_METHODS", "PEACE@nosuch")
    assert one_sentence(nb("paper", "--profile", "smoke")[2], "'nosuch'", "resnet18")


def test_the_checkout_is_found_from_a_build_folder_elsewhere(tmp_path, monkeypatch):
    root = project_root()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PeaceError, match="No settings.ini"): project_root()
    monkeypatch.setenv(PLACE, str(root))
    assert project_root() == root


def test_a_store_is_built_by_one_process_at_a_time(adults, tmp_path, nb):
    place = tmp_path / "stores" / "ptb-xl"
    code = f"import time; from peace_nb.processes import alone\nwith alone({str(place)!r}):\n print(1, flush=True)\n time.sleep(99)"
    call = ("prepare", "ptb-xl", "--root", adults, "--store", place.parent, "--fs", 100, "--no-report", "--jobs", 1)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        try:
            assert one_sentence(nb(*call)[2], place, f"is in use by process {other.pid}")
            with pytest.raises(PeaceError, match=f"process {other.pid}"):
                build_store(load_cohort("ptb-xl", adults), SignalSpec(fs=100), place, progress=False)
        finally: other.kill()
    assert not place.exists()
    cohort = load_cohort("ptb-xl", adults)
    store = build_store(cohort, SignalSpec(fs=100), place, progress=False)
    with FileLock(place.parent / ".ptb-xl.lock"):     # a finished store is read whatever others do
        assert build_store(cohort, SignalSpec(fs=100), place).fingerprint == store.fingerprint


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("where", ["array", "table", "receipt"])
def test_a_disk_that_fails_is_one_sentence_and_costs_nothing(adults, tmp_path, monkeypatch, nb, number, where):
    "The third chunk cannot be written; afterwards the same call goes on, and the store is that of an undisturbed build."
    cohort, spec = load_cohort("ptb-xl", adults), SignalSpec(fs=100)
    whole = build_store(cohort, spec, tmp_path / "whole", progress=False, chunk=8)
    real, left = writer.Writer.append, [2]

    def append(self, chunk):
        left[0] -= 1
        if left[0] >= 0: return real(self, chunk)
        target = {"array": self.file, "table": self.parts / "0000002.table", "receipt": self.parts / "0000002.json"}[where]
        if where != "array":
            with replacing(target): raise OSError(number, os.strerror(number))
        with naming(target): raise OSError(number, os.strerror(number))
    with monkeypatch.context() as m:
        m.setattr(writer.Writer, "append", append)
        m.setattr(cli, "predict_record", lambda *a: build_store(cohort, spec, tmp_path / "s", progress=False, chunk=8))
        code, out, err = nb("predict", "x", "--model", "y")
    assert code == 2 and not out and one_sentence(err, tmp_path / "s.partial", "cannot be read or written")
    assert "tmp" not in err.replace(str(tmp_path), "") and not (tmp_path / "s").exists()
    again = build_store(cohort, spec, tmp_path / "s", progress=False, chunk=8)
    assert again.fingerprint == whole.fingerprint and again.verify()


def test_a_chunk_without_one_good_record_stops_nothing(cohort, tmp_path):
    for path in cohort.table.path.iloc[4:8]: (cohort.root / f"{path}.dat").unlink()
    store = build_store(cohort, SignalSpec(fs=100), tmp_path / "s", progress=False, chunk=4)
    assert len(store) == len(cohort) - 4 and (store.table.quality.map(type) == str).all() and store.verify()


def test_a_machine_at_its_limits_sets_nothing_aside(cohort, tmp_path, monkeypatch):
    read = type(cohort).raw
    monkeypatch.setattr("peace_nb.store.build.warmed", lambda: False)

    def raw(self, rid):
        if rid != cohort.table.index[5]: return read(self, rid)
        with readable("r.dat"): raise OSError(errno.EMFILE, "Too many open files", "r.dat")
    with monkeypatch.context() as m:
        m.setattr(type(cohort), "raw", raw)
        with pytest.raises(OSError, match="Too many open files"):
            build_store(cohort, SignalSpec(fs=100), tmp_path / "s", progress=False)
    cohort.root.rename(tmp_path / "unplugged")
    with pytest.raises(PeaceError, match="is not there any more"):
        build_store(cohort, SignalSpec(fs=100), tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("command", ["predict", "evaluate", "prepare", "download", "paper"])
def test_ctrl_c_is_one_sentence(tmp_path, monkeypatch, nb, command):
    def stop(*args, **kwargs): raise KeyboardInterrupt
    for place in ("peace_nb.cli.predict_record", "peace_nb.cli.evaluate_cohort", "peace_nb.prepare.prepare_cohort",
                  "peace_nb.datasets.download.download", "peace_nb.pipeline.build.build_paper"):
        monkeypatch.setattr(place, stop)
    args = {"predict": ("x", "--model", "y"), "evaluate": ("ptb-xl", "--root", tmp_path, "--model", "y"),
            "prepare": ("ptb-xl", "--root", tmp_path, "--store", tmp_path / "s"),
            "download": ("ptb-xl", "--to", tmp_path / "d"), "paper": ()}[command]
    code, out, err = nb(command, *args)
    assert code == 130 and not out and one_sentence(err, "interrupted")
    assert ("goes on" in err) == (command != "predict")


WORKER = """
import time
from functools import partial
if __name__ == "__main__":
    from peace_nb import cli, prepare
    from peace_nb.store import build
    build.build_store = prepare.build_store = partial(build.build_store, chunk=2)
    tell = prepare._Teller.__call__
    def slowly(self, *at):   # after each chunk, so that the build is not over before it is stopped
        tell(self, *at)
        time.sleep(0.5)
    prepare._Teller.__call__ = slowly
    cli.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process group of its own cannot be sent Ctrl-C there")
def test_ctrl_c_with_workers_leaves_no_traceback_and_no_process(adults, tmp_path):
    (tmp_path / "nb.py").write_text(WORKER)
    call = ["prepare", "ptb-xl", "--root", str(adults), "--store", str(tmp_path / "s"), "--no-report", "--jobs", "2"]
    receipt = tmp_path / "s" / "ptb-xl.partial" / "parts" / "0000000.json"
    child = subprocess.Popen([sys.executable, str(tmp_path / "nb.py"), *call], start_new_session=True, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while child.poll() is None and not receipt.exists(): time.sleep(0.02)
    family = psutil.Process(child.pid).children(recursive=True)
    os.killpg(child.pid, signal.SIGINT)      # as a terminal does: to all of them
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and one_sentence(err, "interrupted; what is prepared is kept")
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    made = build_store(load_cohort("ptb-xl", adults), SignalSpec(), tmp_path / "s" / "ptb-xl", chunk=2, progress=False)
    assert made.verify() and len(made) + len(made.set_aside) == len(load_cohort("ptb-xl", adults).table)


def test_texts_that_contradicted_themselves(tmp_path, heart):
    assert [short_text(s, 10) for s in (9.99, 9.998, 6.27, 5.0)] == ["9.99s", "9.998s", "6.3s", "5.0s"]
    flags = prepare_flagged(heart[:, :-5], LEADS, FS, SignalSpec(seconds=SECONDS))[2]
    assert flags["short"] == ["7.99s"]
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(PeaceError, match="needs 0 MB more and .* to spare, but only"):
        check_space(tmp_path, 0, spare=free + 10**9)
