"""The command line as a user meets it: records of many kinds, and one sentence for every fault."""
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import wfdb
from typer.testing import CliRunner

from peace_nb import cli
from peace_nb.labels.space import LABELS
from peace_nb.signals.prepare import LEADS
from peace_nb.simulation.simulator import simulate


def call(*args) -> subprocess.CompletedProcess:
    "`peace-nb` in a process of its own, so that exit codes and streams are the real ones."
    return subprocess.run(
        [sys.executable, "-c", "from peace_nb.cli import main; main()", *map(str, args)], capture_output=True, text=True
    )


def write(folder, name, signal, leads, fs):
    "A WFDB record of `signal (C, T)` in millivolts."
    folder.mkdir(parents=True, exist_ok=True)
    wfdb.wrsamp(
        name, fs=fs, units=["mV"] * len(leads), sig_name=list(leads), p_signal=np.asarray(signal, float).T,
        fmt=["16"] * len(leads), adc_gain=[1000.0] * len(leads), baseline=[0] * len(leads), write_dir=str(folder)
    )
    return folder / name


@pytest.fixture(scope="module")
def ecg(): return simulate(1, population="adult", seed=3, fs=500, seconds=12).signals[0]


@pytest.fixture(scope="module")
def model(smoke): return smoke / "models" / "sim2real" / "PEACE"


def probabilities(record, model):
    found = cli.predict_record(record, model)["probabilities"]
    assert list(found) == list(LABELS) and all(0 <= p <= 1 for p in found.values())
    return np.array(list(found.values()))


def test_lead_order_does_not_matter(tmp_path, model, ecg):
    plain = probabilities(write(tmp_path, "plain", ecg, LEADS, 500), model)
    order = np.random.default_rng(0).permutation(12)
    mixed = probabilities(write(tmp_path, "mixed", ecg[order], [LEADS[i].upper() for i in order], 500), model)
    np.testing.assert_allclose(plain, mixed, atol=1e-6)
    swapped = probabilities(write(tmp_path, "swapped", ecg[order], LEADS, 500), model)
    assert np.abs(plain - swapped).max() > 1e-3, "leads under wrong names must change the answer, or names are not used"


@pytest.mark.parametrize(
    "fs, seconds, leads",
    [(250, 12, LEADS), (1000, 6, LEADS), (500, 5, [lead for lead in LEADS if lead not in ("V2", "V4", "V6")]), (100, 12, LEADS)]
)
def test_many_kinds_of_records(tmp_path, model, fs, seconds, leads):
    signal = simulate(1, population="child", seed=5, fs=fs, seconds=seconds).signals[0]
    record = write(tmp_path, "r", signal[[LEADS.index(lead) for lead in leads]], leads, fs)
    found = cli.predict_record(record, model)
    assert found["fs"] == fs and found["leads"] == list(leads) and len(found["probabilities"]) == len(LABELS)


def test_predict_prints_json_and_draws(tmp_path, model, ecg):
    record = write(tmp_path, "r", ecg, LEADS, 500)
    said = call("predict", record, "--model", model, "--json", "--plot", tmp_path / "ecg.png")
    assert said.returncode == 0, said.stderr
    assert set(json.loads(said.stdout)["probabilities"]) == set(LABELS)
    assert (tmp_path / "ecg.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and not list(tmp_path.glob("*.tmp*"))
    table = call("predict", f"{record}.hea", "--model", model)
    assert table.returncode == 0 and "no medical device" in table.stdout and "sinus tachycardia" in table.stdout


def test_age_and_frame(tmp_path, model, smoke):
    child = write(
        tmp_path, "child", simulate(1, population="child", seed=5, fs=500, seconds=10, age_days=120).signals[0], LEADS,
        500
    )
    plain, framed = cli.predict_record(child, model), cli.predict_record(child, model, 120 / 365.25, True)
    # a network that reads no age
    assert (
        plain["probabilities"] == cli.predict_record(child, model, 120 / 365.25)["probabilities"]
        and not plain["reads_age"]
    )
    assert framed["probabilities"] != plain["probabilities"] and framed["frame"] and framed["age_years"] == 120 / 365.25
    rules = smoke / "models" / "Rules" / "seed0"
    adult, infant, fit = (
        cli.predict_record(child, rules, *how)["probabilities"] for how in ((), (120 / 365.25,), (120 / 365.25, True))
    )
    assert adult["STACH"] > infant["STACH"] and fit["STACH"] < adult["STACH"], (
        "an infant's rate is fast for an adult alone"
    )
    said = call("predict", child, "--model", rules)
    assert said.returncode == 0 and "reads the patient's age" in said.stdout
    for wrong, sentence in (
        (("--frame",), "needs the patient's age"), (("--age", "-1"), "An age of -1 years"),
        (("--age", "400"), "An age of 400 years")
    ):
        said = call("predict", child, "--model", model, *wrong)
        assert said.returncode == 2 and sentence in said.stderr and "Traceback" not in said.stderr


def test_evaluate_scores_a_cohort(smoke, model):
    said = call(
        "evaluate", "ptb-xl", "--root", smoke / "cohorts" / "ptbxl", "--model", model, "--json", "--bootstrap", 50
    )
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    rows = {r["label"]: r for r in found["metrics"]}
    assert (
        found["records"] > 0
        and 0 <= rows["macro"]["auroc"] <= 1
        and rows["macro"]["lo"] <= rows["macro"]["auroc"] <= rows["macro"]["hi"]
    )
    assert set(LABELS) <= set(rows)
    for r in rows.values(): assert (r["auroc"] is not None) == bool(r["scored"]) and (r["scored"] or r["reason"])
    text = call("evaluate", "ptb-xl", "--root", smoke / "cohorts" / "ptbxl", "--model", model, "--bootstrap", 20).stdout
    for label, r in rows.items():
        if not r["scored"]: assert f"not scored: {label}" in text


@pytest.mark.parametrize("spoil, words", [
    (lambda d, r: None, "nowhere"),
    (lambda d, r: (d / "r.dat").unlink(), "r.dat"),
    (lambda d, r: (d / "r.dat").write_bytes((d / "r.dat").read_bytes()[:1000]), "r.dat"),
    (lambda d, r: (d / "r.hea").write_bytes(b"\xff\xfe\x00garbage"), "r.hea"),
    (lambda d, r: (d / "r.hea").write_text((d / "r.hea").read_text().replace(" 500 ", " 5000 ", 1)), "5 s"),
])
def test_a_bad_record_is_one_sentence(tmp_path, model, ecg, spoil, words):
    record = write(tmp_path, "r", ecg, LEADS, 500)
    spoil(tmp_path, record)
    said = call(
        "predict", tmp_path / "nowhere" if words == "nowhere" else record, "--model", model, "--plot",
        tmp_path / "ecg.png"
    )
    assert said.returncode == 2 and said.stdout == "" and not (tmp_path / "ecg.png").exists()
    assert said.stderr.startswith("peace-nb: ") and len(said.stderr.strip().splitlines()) == 1 and words in said.stderr


def test_a_model_of_another_label_space_is_refused(tmp_path, model, smoke):
    from peace_nb.settings import PeaceError
    from peace_nb.training.checkpoint import load_model
    shutil.copytree(model, tmp_path / "m")
    facts = json.loads((tmp_path / "m" / "model.json").read_text())
    facts["labels"][0] = "OTHER"
    (tmp_path / "m" / "model.json").write_text(json.dumps(facts))
    with pytest.raises(PeaceError, match="label space"): load_model(tmp_path / "m", labels=LABELS)
    said = call("evaluate", "ptb-xl", "--root", smoke / "cohorts" / "ptbxl", "--model", tmp_path / "m")
    assert said.returncode == 2 and "label space" in said.stderr


def test_other_faults_are_one_sentence_too(tmp_path, model, smoke):
    for args, words in (
        (("predict", "x", "--model", tmp_path), "model.json"),
        (("evaluate", "ptbxl", "--root", tmp_path, "--model", model), "ptb-xl"),
        (("evaluate", "zzu-pecg", "--root", tmp_path, "--model", model), "AttributesDictionary.csv"),
        (("paper", "--profile", "dmeo"), "dmeo")
    ):
        said = call(*args)
        assert said.returncode == 2 and words in said.stderr and len(said.stderr.strip().splitlines()) == 1, (
            args, said.stderr
        )


def test_help_names_every_command():
    said = CliRunner().invoke(cli.app, ["--help"])
    assert said.exit_code == 0 and all(word in said.output for word in ("paper", "predict", "evaluate"))
