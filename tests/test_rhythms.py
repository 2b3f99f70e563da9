"""Studies with catheters: the real annotations counted exactly, bad files, constant memory, the command, and what must not move."""
import json
import re
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import wfdb
from typer.testing import CliRunner

from conftest import ROOT
from peace_nb import cli
from peace_nb.pipeline.steps import STEPS, sources, step_of
from peace_nb.pipeline.tables import load_reported
from peace_nb.rhythms.electrograms import FS, RHYTHMS, draw_child, draw_study, leipzig_children, write_studies, write_study
from peace_nb.rhythms.preparation import MARGIN, RhythmSpec, prepare_rhythms, prepare_stretch
from peace_nb.rhythms.protocol import fold_of
from peace_nb.rhythms.segments import CHANNELS, CLASSES, WindowRule, all_windows, count_rhythms
from peace_nb.rhythms.training import METHODS, RhythmConfig, fit, new_network, out_of_fold, save_rhythm_net
from peace_nb.settings import PeaceError, load_profile

# children, segments and beats of every rhythm mark of the 29 children, counted by another program from the same file
REAL = {
    "(N": (26, 514, 40_024), "(N pre-excited": (5, 213, 16_766), "(AVRT": (15, 93, 13_121), "(/A": (20, 454, 12_645),
    "(AVNRT": (13, 126, 8_546), "(/V": (19, 196, 4_499), "(AFIB": (5, 12, 1_277), "(J": (4, 25, 332), "(A": (5, 8, 297),
    "(VT": (5, 12, 120), "(AFL": (1, 1, 107), "(EAT": (1, 4, 31), "(B": (2, 2, 18)
}
BEATS = {   # some children, all their rhythms
    "x001": "N9763 /A3536 AVRT2420 /V213 AFIB40 A11 J7", "x005": "N2254", "x007": "N185 AVRT165",
    "x006": "N10325 /A1537 AFIB959 /V930 AVNRT544 J304 A198 AFL107 VT21", "x0017": "AVNRT455 A79 /V22 N17",
    "x003": "N13062 /V840 /A811 AVRT416 AFIB70 VT42 B7", "x0029": "AVRT767 N476 /A120 /V115"
}


@pytest.fixture(scope="module")
def real(samples) -> pd.DataFrame:
    "All annotations of the real database, in the order of its files."
    file = samples / "leipzig-annotations" / "annotations.csv.gz"
    if not file.is_file(): pytest.skip(f"{file.name} is not among the samples")
    return pd.read_csv(file, keep_default_na=False)


def test_real_annotations_are_counted_exactly(real):
    assert len(real) == 118_214
    found = count_rhythms(real)
    children = found[~found["record"].str.fullmatch(r"x1\d\d")]
    named = ("(" + children["rhythm"]).mask(children["class"] == "pre-excited", "(N pre-excited")
    counted = children.groupby(named).agg(c=("record", "nunique"), s=("beats", "size"), b=("beats", "sum"))
    assert {k: tuple(v) for k, v in counted.iterrows()} == REAL
    adults = found[found["record"].str.fullmatch(r"x1\d\d")].groupby("rhythm")["beats"].sum()
    assert adults.to_dict() == {"N": 12_272, "VT": 2_956, "/V": 2_123, "IVR": 472, "A": 140}
    assert found["aberrant"].sum() == 231 + 21 and found["class"].notna().all()


def test_real_beats_of_each_child_are_those_kept_with_the_package(real):
    found = count_rhythms(real)
    rhythm = found["rhythm"].mask(found["class"] == "pre-excited", "N-Prex")
    beats = found.assign(rhythm=rhythm).pivot_table(index="record", columns="rhythm", values="beats", aggfunc="sum", fill_value=0)
    kept = leipzig_children()
    assert (beats.loc[kept.index, list(RHYTHMS)] == kept[list(RHYTHMS)]).all(axis=None) and len(kept) == 29
    together = beats.assign(N=beats["N"] + beats["N-Prex"]).drop(columns="N-Prex")
    for child, words in BEATS.items():
        said = {w.rstrip("0123456789"): int(w[len(w.rstrip("0123456789")):]) for w in words.split()}
        assert {k: int(v) for k, v in together.loc[child].items() if v} == said


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    "Five simulated children in the layout of the database."
    root = tmp_path_factory.mktemp("studies") / "raw"
    write_studies(root, 420, 7, records=["x006", "x007", "x0020", "x0021", "x0026"])
    return root


def broken(studies: Path, to: Path) -> Path: return Path(shutil.copytree(studies, to / "raw"))


def rewrite(record: Path, change):
    "Write the annotations of a study anew, with words changed."
    from ecgbench.labels.leipzig_heart_center_ecg import CUSTOM_ANNOTATION_LABELS
    custom = pd.DataFrame(CUSTOM_ANNOTATION_LABELS, columns=["label_store", "symbol", "description"])
    kept = wfdb.rdann(str(record), "atr")
    words = [change(s, (w or "").strip("\x00 ")) for s, w in zip(kept.symbol, kept.aux_note)]
    wfdb.wrann(record.name, "atr", kept.sample, symbol=kept.symbol, aux_note=words, custom_labels=custom,
               write_dir=str(record.parent))


def test_what_cannot_be_used_is_set_aside_and_listed(studies, tmp_path):
    root = broken(studies, tmp_path)
    whole = all_windows(root)[0]
    rewrite(root / "x0021", lambda s, w: "(SVT" if w == "(AVNRT" else w)             # a rhythm nobody knows
    head = (root / "x0020.hea").read_text()
    (root / "x0020.hea").write_text(head.replace("CS12", "HALO1").replace("CS90", "CS 9-10"))   # one renamed, one respelt
    (root / "x0026.atr").unlink()
    dat = root / "x007.dat"
    dat.write_bytes(dat.read_bytes()[: dat.stat().st_size // 3])
    store = prepare_rhythms(root, tmp_path / "store")
    said = store.aside.groupby("record")["what"].apply(" ".join)
    assert "rhythm (SVT is not known" in said["x0021"] and "channel HALO1 is not known" in said["x0020"]
    assert "x0026.atr does not exist" in said["x0026"] and "x007.dat is cut short" in said["x007"]
    assert set(store.table["record"]) == {"x006", "x0020", "x0021"}
    own = (store.table["record"] == "x0020").to_numpy()
    there = dict(zip(CHANNELS, store.present[own][0]))
    assert not there["CS12"] and (there["CS90"] or "CS90" not in head)
    assert (whole["record"] == "x0021").sum() > (store.table["record"] == "x0021").sum()
    assert not (store.table[store.table["record"] == "x0021"]["class"] == "AVNRT").any()


def test_marks_behind_the_end_of_the_signals_say_that_they_are_cut(studies, tmp_path):
    root = broken(studies, tmp_path)
    lines = (root / "x0026.hea").read_text().splitlines()
    first = lines[0].split()
    lines[0] = " ".join([*first[:3], str(int(first[3]) // 2)])
    (root / "x0026.hea").write_text("\n".join(lines) + "\n")
    _, _, aside = all_windows(root)
    assert "cut short" in aside.set_index("record").at["x0026", "what"]


def test_one_child_alone_cannot_be_split_by_children(studies, tmp_path):
    root = broken(studies, tmp_path)
    for record in ("x006", "x007", "x0020", "x0026"): (root / f"{record}.atr").unlink()
    store = prepare_rhythms(root, tmp_path / "store")
    with pytest.raises(PeaceError, match="4 folds need at least as many children, but there is 1"):
        out_of_fold("CE", store, "children", 4, RhythmConfig(epochs=1), 0)
    predicted, _ = out_of_fold("CE", store, "windows", 2, RhythmConfig(epochs=1), 0)
    assert len(predicted) == len(store)


def test_no_window_at_all_is_one_sentence(studies):
    with pytest.raises(PeaceError, match="no study has a window inside a known rhythm"):
        all_windows(studies, WindowRule(seconds=3000))


def test_a_class_without_training_windows_stops_nobody():
    torch.manual_seed(0)
    x, y = torch.rand(40, 19, 200), torch.arange(40) % 2 + 3                       # two of eight classes
    there = torch.ones(40, 19, dtype=torch.bool)
    for name in METHODS:
        net, prototypes = fit(METHODS[name], x, there, y, len(CLASSES), RhythmConfig(epochs=1, batch_size=20), 0)
        assert torch.isfinite(prototypes).all() and all(torch.isfinite(p).all() for p in net.parameters()), name


def test_children_and_windows_are_dealt_alike_every_time(studies):
    table = all_windows(studies)[0]
    for split in ("windows", "children"):
        assert np.array_equal(fold_of(table, split, 3, 5), fold_of(table, split, 3, 5))


def test_memory_is_flat_in_the_length_of_a_study(tmp_path):
    peaks = {}
    for minutes in (5, 20):
        root = tmp_path / str(minutes)
        child = draw_child("x0021", 0)
        study = draw_study(child, {"N": 30 * minutes // 2, "AVNRT": 30 * minutes // 2}, 0)
        root.mkdir()
        tracemalloc.start()
        write_study(root, study, 0)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        for name, head in (("children", "subject_id,file_name,gender,age,diagnosis,ap_loacation,ecg_duration"),
                           ("adults", "subject_id,file_name,gender,age,diagnosis,ecg_duration")):
            line = "0021,x0021,F,9.0,AVNRT,,0:05:00.000\n" if name == "children" else ""
            (root / f"{name}-subject-info.csv").write_text(f"{head}\n{line}")
        tracemalloc.start()
        prepare_rhythms(root, tmp_path / f"store{minutes}")
        peaks[minutes] = written, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    for short, long in zip(peaks[5], peaks[20]): assert long < 1.25 * short + 4e6, peaks


def test_preparation_is_faster_than_window_by_window(studies, tmp_path):
    "Processor time of one process against a plain loop of wfdb that gives the same windows; two processes halve ours."
    table, listed, _ = all_windows(studies)
    own = table[table["record"] == "x006"].head(60)
    begin = time.process_time()
    plain = []
    for w in own.itertuples():
        first = max(0, (w.start // FS - MARGIN) * FS)
        stop = min(int(listed.at[w.record, "samples"]), w.start + 2 * FS + MARGIN * FS)
        read = wfdb.rdrecord(str(studies / w.record), sampfrom=first, sampto=stop)
        done, _ = prepare_stretch(read.p_signal.T, read.sig_name, FS)
        at = round((w.start - first) / FS * 100)
        plain.append(done[:, at:at + 200])
    each = (time.process_time() - begin) / len(own)
    begin = time.process_time()
    store = prepare_rhythms(studies, tmp_path / "store")
    ours = (time.process_time() - begin) / len(store)
    mine = store.x[(store.table["record"] == "x006").to_numpy()][:60].astype(float)
    assert np.abs(mine - np.array(plain)).max() < .05
    assert each > 2 * ours, f"{1000 * each:.1f} ms a window by the loop, {1000 * ours:.1f} ms here"


def test_predict_rhythm_from_the_command_line(studies, tmp_path):
    torch.manual_seed(0)
    model = save_rhythm_net(tmp_path / "net", new_network(METHODS["taught"], len(CLASSES), None, 0), "taught", RhythmSpec())
    run, record = CliRunner(), str(studies / "x007")
    found = run.invoke(cli.app, ["predict-rhythm", record, "--model", str(model), "--json", "--plot", str(tmp_path / "s.png")])
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    ends = [r["end"] for r in told["rhythms"]]
    assert told["catheters"] and ends == sorted(ends) and (tmp_path / "s.png").stat().st_size > 5000
    plain = run.invoke(cli.app, ["predict-rhythm", record, "--model", str(model), "--surface"])
    assert plain.exit_code == 0 and "catheters: none read" in plain.stdout and "no medical device" in plain.stdout
    for arguments, words in ((["none", "--model", str(model)], "none.hea does not exist"),
                             ([record, "--model", str(tmp_path)], "holds no rhythm network")):
        wrong = run.invoke(cli.app, ["predict-rhythm", *arguments])
        assert isinstance(wrong.exception, PeaceError) and words in str(wrong.exception)


def test_prepare_leipzig_also_cuts_windows_of_rhythms(studies, tmp_path):
    said = CliRunner().invoke(cli.app, ["prepare", "leipzig", "--root", str(studies), "--store", str(tmp_path / "stores"),
                                        "--fs", "100", "--no-report", "--jobs", "1"])
    assert said.exit_code == 0, said.output
    assert (tmp_path / "stores" / "leipzig-rhythms" / "store.json").is_file() and "windows inside one rhythm" in said.stdout


def test_no_step_of_peace_stands_on_rhythms_nor_on_other_records():
    mine = {s.name for s in STEPS if s.study == "agcacl"}
    for s in STEPS:
        rooms = {p.parent.name for p in sources(s)}
        assert "rhythms" not in rooms or s.name in mine, s.name
    rhythm = {k for s in STEPS if s.study == "agcacl" for k in s.settings}
    read = {k for s in STEPS if s.study == "peace" for k in s.settings}
    assert {k for k in rhythm if k.startswith("rhythm_")} & read == set()
    assert "peace_nb/rhythms/losses.py" in {p.relative_to(ROOT).as_posix() for p in sources(step_of("rhythm-train"))}


def test_reported_numbers_of_agcacl_come_from_the_file_alone():
    told = load_reported()["agcacl"]
    numbers = {str(v) for version in told.values() for v in [*version.values(), *version["gain_over_strongest"].values()]
               if isinstance(v, float) and v > 5}
    assert len(numbers) >= 11
    for path in [*ROOT.glob("nbs/rhythms/*.ipynb"), *ROOT.glob("nbs/studies/agcacl/*.ipynb"), ROOT / "paper/chapters/agcacl.typ",
                 ROOT / "paper/claims_agcacl.csv"]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb": text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"])
        assert not [n for n in numbers if re.search(rf"(?<![\d.]){re.escape(n)}(?![\d])", text)], path


def test_a_root_that_is_not_there_is_simulated_where_the_profile_says_so(monkeypatch):
    monkeypatch.setenv("PEACE_SAMPLE_DATA", "/somewhere")
    monkeypatch.delenv("PEACE_LEIPZIG", raising=False)
    assert load_profile("sample").leipzig_root == "simulated"
    monkeypatch.setenv("PEACE_LEIPZIG", "/data/leipzig")
    assert load_profile("sample").leipzig_root == "$PEACE_LEIPZIG"
