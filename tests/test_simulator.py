"What the simulator's notebook cannot hold: separate processes, odd settings, wrong input"
import hashlib, subprocess, sys
import numpy as np
import pytest
from peace_nb.simulation import heart
from peace_nb.labels.space import LABELS
from peace_nb.signals.prepare import LEADS, SignalSpec
from peace_nb.simulation.simulator import simulate, simulate_blocks
from peace_nb.settings import PeaceError

CODE = """
import hashlib
from peace_nb.simulation.simulator import simulate
s = simulate(110, 'child', seed=6, fs=100)
print(hashlib.sha256(s.signals.tobytes() + s.labels.to_numpy().tobytes() + s.table.to_csv().encode()).hexdigest())
"""


def test_another_process_makes_the_same_records():
    def run(): return subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    runs = [run() for _ in range(2)]
    assert runs[0] == runs[1] and len(runs[0]) == 65


@pytest.mark.parametrize("fs, seconds", [(100, 10.0), (257, 10.0), (977, 5.0), (250, 60.0)])
def test_any_rate_and_length(fs, seconds):
    s = simulate(3, "child", fs=fs, seconds=seconds)
    assert s.signals.shape == (3, 12, int(fs * seconds)) and np.isfinite(s.signals).all()
    assert (np.ptp(s.signals, axis=2) > .02).all()
    late = s.signals[:, :, -int(2 * fs):]
    assert (np.ptp(late, axis=2) > .02).all()                 # beats until the end


def test_the_same_beats_at_two_rates():
    fine, coarse = (simulate(5, seed=2, fs=fs, site="quiet") for fs in (500, 100))
    rows = ~fine.table.rhythm.isin(["atrial fibrillation", "atrial flutter"]).to_numpy()
    assert rows.any()
    assert np.corrcoef(fine.signals[rows, :, ::5].ravel(), coarse.signals[rows].ravel())[0, 1] > .98


def test_blocks_are_what_the_store_takes():
    spec = SignalSpec(fs=100)
    blocks = list(simulate_blocks(130, spec, population="child", seed=1))
    assert [len(b[0]) for b in blocks] == [100, 30]
    for x, mask, table, labels in blocks:
        assert x.shape[1:] == (12, spec.n) and x.dtype == np.float32 and mask.all() and mask.shape == x.shape[:2]
        assert list(labels.columns) == list(LABELS) and labels.index.equals(table.index)


def test_one_lead_asked_for_is_one_lead():
    spec = SignalSpec(fs=100, leads=("V6",))
    (x, mask, _, _), = simulate_blocks(3, spec, seed=1)
    (every, _, _, _), = simulate_blocks(3, SignalSpec(fs=100), seed=1)
    assert x.shape == (3, 1, spec.n) and mask.shape == (3, 1)
    assert np.array_equal(x[:, 0], every[:, LEADS.index("V6")])


def test_a_corrected_table_is_obeyed(monkeypatch):
    "Whoever corrects a number in a table gets other hearts; nothing holds a copy of it."
    before = simulate(40, seed=2, fs=100, labels=("NORM", "LVH"), site="quiet").signals
    monkeypatch.setitem(heart.ADDED_FORCE, "lvh", {heart.FREE_WALL: (0, 0, 0)})
    after = simulate(40, seed=2, fs=100, labels=("NORM", "LVH"), site="quiet").signals
    v5 = LEADS.index("V5")
    assert np.median(np.ptp(after[:, v5], axis=1)) < .9 * np.median(np.ptp(before[:, v5], axis=1))
    monkeypatch.setitem(heart.RHYTHM_PREVALENCE, "af", heart.Prevalence(child=1, adult=1))
    assert (simulate(40, "child", seed=2, fs=100).table.rhythm == "atrial fibrillation").all()


def test_a_reader_changes_labels_and_nothing_else():
    clean, read = simulate(300, seed=3, fs=100), simulate(300, seed=3, fs=100, reader="first")
    assert np.array_equal(clean.signals, read.signals) and clean.labels.equals(read.true_labels)
    assert .02 < (read.labels != read.true_labels).to_numpy().mean() < .12
    again, other = (simulate(300, seed=3, fs=100, reader=who).labels for who in ("first", "second"))
    assert again.equals(read.labels) and not other.equals(read.labels)


def test_the_hospital_and_its_readers_are_chosen_not_given():
    "Whoever asks for nothing gets the records of before: hashes of the clinic's children and of the adults."
    def digest(s): return hashlib.sha256(s.signals.tobytes() + s.labels.to_numpy().tobytes()).hexdigest()
    for population, own in (("adult", "adult"), ("child", "clinic")):
        given, asked = (simulate(110, population, seed=6, fs=100, **kw) for kw in ({}, {"illnesses": own}))
        assert digest(given) == digest(asked)
    hospital = simulate(110, "child", seed=6, fs=100, illnesses="hospital")
    assert digest(hospital) != digest(given) and "illness" in hospital.table and "illness" not in given.table


@pytest.mark.parametrize("kw, word", [
    (dict(population="dog"), "population"), (dict(labels=("LBB",)), "LBB"), (dict(site="moon"), "moon"),
    (dict(age_days=-3, population="child"), "age"), (dict(illnesses="dog"), "dog"),
    (dict(reader="third"), "third"), (dict(illnesses="hospital"), "children")])
def test_wrong_input_is_one_sentence(kw, word):
    with pytest.raises(PeaceError, match=word): simulate(2, fs=100, **kw)
