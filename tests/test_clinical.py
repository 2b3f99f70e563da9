"""Clinical values: bad tables are counted or refused in one sentence, nothing comes from the future, nothing of a table reaches a score."""
import gzip
import json
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT
from peace_nb.clinical.matrix import INPUTS, Window, audit, join
from peace_nb.clinical.tables import BUCKETS, EcgTimes, Reach, byte_blocks, find_table, near_vitals, read_bucket, stream_labs
from peace_nb.clinical.values import value_table
from peace_nb.settings import PeaceError
from peace_nb.simulation.hospital_tables import write_hospital

HEADER = (
    "labevent_id,subject_id,hadm_id,specimen_id,itemid,charttime,storetime,value,valuenum,valueuom,"
    "ref_range_lower,ref_range_upper,flag,priority,comments"
).split(",")
POTASSIUM = list(value_table().index).index("potassium")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    root = tmp_path_factory.mktemp("hospital") / "h"
    write_hospital(root, 60, seed=5, fs=100, provider=False)
    return root


@pytest.fixture
def ecgs():
    return pd.DataFrame({"subject_id": [7, 8], "ecg_time": pd.to_datetime(["2110-05-01 12:00:00"] * 2)}, index=[1, 2])


def row(**changes):
    "One potassium of patient 7, half an hour before the ECG."
    usual = dict(
        labevent_id=1, subject_id=7, hadm_id="", specimen_id=1, itemid=50971, charttime="2110-05-01 11:30:00",
        storetime="2110-05-01 12:10:00", value="4.1", valuenum=4.1, valueuom="mmol/L", ref_range_lower=3.3,
        ref_range_upper=5.1, flag="", priority="STAT", comments=""
    )
    return usual | changes


def read(tmp_path, ecgs, *rows, columns=HEADER, zipped=False, births=None):
    "(hits, counts) of a labevents with these rows."
    path = tmp_path / ("labevents.csv.gz" if zipped else "labevents.csv")
    text = pd.DataFrame(rows)[list(columns)].to_csv(index=False)
    if zipped: path.write_bytes(gzip.compress(text.encode()))
    else: path.write_text(text)
    counts = stream_labs(path, ecgs, tmp_path / "work", births)
    return pd.concat([read_bucket(tmp_path / "work", k, counts) for k in range(BUCKETS)], ignore_index=True), counts


def test_a_plain_row(tmp_path, ecgs):
    hits, counts = read(tmp_path, ecgs, row())
    assert len(hits) == 1 and hits.loc[0, "value"] == POTASSIUM and hits.loc[0, "minutes"] == -30
    assert counts["kept"] == 1 and counts["rows"] == 1


@pytest.mark.parametrize("changes, counted, kept", [
    ({"value": "___", "valuenum": None}, "no number", 0),
    ({"valueuom": "stone"}, "unknown unit", 0),
    ({"valueuom": ""}, "no unit", 1),
    ({"charttime": "yesterday"}, "no time", 0),
    ({"charttime": ""}, "no time", 0),
    ({"valuenum": 400.0, "value": "400"}, "not believable", 0),
    ({"itemid": 51003, "value": "<0.01", "valuenum": None, "valueuom": "ng/mL"}, "as text", 1),
])
def test_what_cannot_be_used_is_counted(tmp_path, ecgs, changes, counted, kept):
    hits, counts = read(tmp_path, ecgs, row(**changes), row(subject_id=8, labevent_id=2))
    assert counts[counted] == 1 and (hits["ecg"] == 0).sum() == kept and (hits["ecg"] == 1).sum() == 1


def test_before_birth(tmp_path, ecgs):
    early = row(charttime="2060-01-01 00:00:00", labevent_id=3)
    hits, counts = read(tmp_path, ecgs, row(), early, births=pd.Series({7: 2070, 8: 2070}))
    assert counts["before birth"] == 1 and len(hits) == 1


def test_one_number_counts_once(tmp_path, ecgs):
    hits, counts = read(tmp_path, ecgs, row(), row(), row(labevent_id=2, itemid=50822, valuenum=4.3, value="4.3"))
    assert counts["twice"] == 1 and len(hits) == 2          # two identifiers of one value are two measurements


def test_columns_in_another_order_zipped_and_of_a_newer_version(tmp_path, ecgs):
    newer = {**row(), "order_provider_id": "P1"}
    hits, _ = read(tmp_path, ecgs, newer, columns=[*reversed(HEADER), "order_provider_id"], zipped=True)
    assert len(hits) == 1


def test_a_comment_with_a_line_break(tmp_path, ecgs):
    hits, _ = read(tmp_path, ecgs, row(comments='seen\nby "two"'), row(subject_id=8, labevent_id=2))
    assert len(hits) == 2


def test_what_is_no_table_is_one_sentence(tmp_path, ecgs):
    with pytest.raises(PeaceError, match="no column 'itemid'"):
        read(tmp_path, ecgs, row(), columns=[c for c in HEADER if c != "itemid"])
    with pytest.raises(PeaceError, match="holds no vitalsign.csv"): find_table(tmp_path, "vitalsign")


def test_a_table_without_a_patient_of_ours(tmp_path, ecgs):
    hits, counts = read(tmp_path, ecgs, row(subject_id=1), row(charttime="2150-01-01 00:00:00", labevent_id=2))
    assert len(hits) == 0 and counts["rows"] == 2 and counts["kept"] == 0


def test_celsius_and_fahrenheit(tmp_path, ecgs):
    vitals = dict(subject_id=7, stay_id=1, charttime="2110-05-01 11:50:00", heartrate=70, resprate=16, o2sat=98, sbp=120, dbp=70)
    pd.DataFrame([vitals | {"temperature": t} for t in (98.6, 37.0, 990.0)]).to_csv(tmp_path / "vitalsign.csv", index=False)
    counts = Counter()
    hits = near_vitals(tmp_path, ecgs, Reach(), counts)
    warm = hits[value_table().index.to_numpy()[hits["value"]] == "temperature"]
    assert np.allclose(warm["number"], 37.0) and len(warm) == 2
    assert counts["temperature in °C already"] == 1 and counts["not believable"] == 1


def test_stays_without_times_are_counted(hospital, tmp_path):
    shutil.copytree(hospital, tmp_path / "h", ignore=shutil.ignore_patterns("files"))
    stays = pd.read_csv(tmp_path / "h/ed/edstays.csv")
    stays.loc[:2, "intime"] = None
    stays.to_csv(tmp_path / "h/ed/edstays.csv", index=False)
    counts = join(tmp_path / "h", tmp_path / "work").counts.set_index("what")["rows"]
    assert counts["stays without times"] == 3


def test_no_value_of_the_future_whatever_the_statistic(hospital, tmp_path):
    "Every hit after the ECG is spoiled; no input changes."
    before = join(hospital, tmp_path / "a", which="mean").inputs
    shutil.copytree(hospital, tmp_path / "h", ignore=shutil.ignore_patterns("files"))
    labs = pd.read_csv(tmp_path / "h/hosp/labevents.csv.gz", dtype=str)
    when = pd.to_datetime(labs["charttime"])
    first = pd.read_csv(hospital / "record_list.csv", parse_dates=["ecg_time"]).groupby("subject_id")["ecg_time"].max()
    late = when > labs["subject_id"].astype(int).map(first)
    labs.loc[late, ["value", "valuenum"]] = "1.5"
    labs.to_csv(tmp_path / "h/hosp/labevents.csv.gz", index=False)
    after = join(tmp_path / "h", tmp_path / "b", which="mean").inputs
    assert late.sum() > 100
    pd.testing.assert_frame_equal(before, after)


def test_the_audit_finds_the_future(hospital, tmp_path):
    made = join(hospital, tmp_path / "a", window=Window(1440, 120))
    everyone = pd.Series("train", made.ecgs.index)
    assert audit(made, everyone).keys() == {"values after the ECG"}
    assert audit(join(hospital, tmp_path / "a", window=INPUTS), everyone) == {}


def test_a_killed_join_goes_on(hospital, tmp_path):
    ecgs = pd.read_csv(hospital / "record_list.csv", parse_dates=["ecg_time"]).set_index("study_id")
    path = find_table(hospital, "labevents")
    whole = stream_labs(path, ecgs, tmp_path / "whole", size=20_000)
    stream_labs(path, ecgs, tmp_path / "part", size=20_000, stop_after=2)
    state = json.loads((tmp_path / "part/state.json").read_text())
    half = tmp_path / "part" / "bucket00" / "part000002.parquet"      # a block that did not come to its state
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half a file")
    assert state["blocks"] == 2 and stream_labs(path, ecgs, tmp_path / "part", size=20_000) == whole
    if len(list(byte_blocks(path, 20_000))) > 2:
        for k in range(BUCKETS):
            if k == 0 and half.read_bytes() == b"half a file": half.unlink()    # its block had nothing for this bucket
            pd.testing.assert_frame_equal(read_bucket(tmp_path / "whole", k), read_bucket(tmp_path / "part", k))


MEMORY = """
import sys, resource, tempfile, pandas as pd
from pathlib import Path
from peace_nb.clinical.tables import stream_labs, read_bucket, BUCKETS
path, ecgs = Path(sys.argv[1]), pd.read_parquet(sys.argv[2])
with tempfile.TemporaryDirectory() as work:
    counts = stream_labs(path, ecgs, Path(work), size=2 << 20)
    for k in range(BUCKETS): read_bucket(Path(work), k)
print(counts["rows"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def generated(path, rows, patients=4000):
    "A labevents of so many rows; a tenth of the patients has an ECG."
    rng, n = np.random.default_rng(rows), 100_000
    with open(path, "w", encoding="utf-8", newline="") as file:
        for k in range(rows // n):
            first, last = k * n * patients // rows, (k + 1) * n * patients // rows      # sorted by patient, as the real table is
            subject = np.sort(rng.integers(first, max(last, first + 1), n))
            when = np.datetime64("2110-01-01T00:00:00") + rng.integers(0, 86400 * 30, n).astype("timedelta64[s]")
            value = np.round(rng.normal(4.2, .5, n), 1)
            part = pd.DataFrame([row()] * 1).loc[np.zeros(n, int)].reset_index(drop=True)
            part = part.assign(labevent_id=np.arange(n) + k * n, subject_id=subject, charttime=np.datetime_as_string(when),
                               itemid=rng.choice([50971, 50983, 50912, 99999], n), value=value, valuenum=value)
            part["charttime"] = part["charttime"].str.replace("T", " ")
            part["storetime"] = part["charttime"]
            part[HEADER].to_csv(file, index=False, header=k == 0, lineterminator="\n")
    who = np.arange(0, patients, 10)
    return pd.DataFrame({"subject_id": who, "ecg_time": pd.to_datetime("2110-01-15")}, index=pd.Index(who, name="study_id"))


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of a process is not told there")
def test_memory_hardly_grows_with_the_table(tmp_path):
    "A table four times as long needs at most a quarter more."
    used = []
    for rows in (500_000, 2_000_000):
        generated(tmp_path / "labevents.csv", rows).to_parquet(tmp_path / "ecgs.parquet")
        ran = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path / "labevents.csv"), str(tmp_path / "ecgs.parquet")],
                             cwd=ROOT, capture_output=True, text=True, check=True)
        read_rows, peak = map(int, ran.stdout.split())
        assert read_rows == rows
        used.append(peak)
    assert used[1] < 1.25 * used[0], used


def test_bisection_is_what_a_loop_finds():
    rng = np.random.default_rng(0)
    when = np.datetime64("2110-01-01") + rng.integers(0, 5 * 86400, 50).astype("timedelta64[s]")
    ecgs = pd.DataFrame({"subject_id": rng.integers(0, 20, 50), "ecg_time": when})
    subject, seconds = rng.integers(0, 25, 200), rng.integers(0, 5 * 86400, 200) + int(pd.Timestamp("2110-01-01").timestamp())
    times, reach = EcgTimes(ecgs), Reach(300, 60)
    keep = np.flatnonzero(times.known(subject))
    row_, ecg, _ = times.pairs(subject[keep], seconds[keep], reach)
    at = ecgs["ecg_time"].to_numpy("datetime64[s]").astype(int)
    slow = {(i, j) for i in range(200) for j in range(50)
            if subject[i] == ecgs["subject_id"][j] and -300 * 60 <= seconds[i] - at[j] <= 3600}
    assert set(zip(keep[row_].tolist(), ecg.tolist())) == slow


READ = """
import sys
for name in ("matrix", "tables", "values"): sys.modules[f"peace_nb.clinical.{name}"] = None      # not to be imported
import numpy as np
from peace_nb.training.clinical_stages import load_clinical_model, read_ecgs
model, x = load_clinical_model(sys.argv[1]), np.load(sys.argv[2])
np.save(sys.argv[3], np.concatenate(read_ecgs(model, x, np.ones(x.shape[:2], bool)), 1))
"""


def test_an_ecg_is_read_without_any_table(tmp_path):
    "A network that learned with a table gives the same bits where tables cannot even be imported."
    from peace_nb.clinical.joint import EcgNet, JointNet
    from peace_nb.signals.prepare import Normaliser, SignalSpec
    from peace_nb.training.clinical_stages import (ClinicalModel, calibrate, fit_reader, load_clinical_model, read_ecgs,
        save_clinical_model, take_encoder)
    import torch
    torch.manual_seed(0)
    rng, spec = np.random.default_rng(0), SignalSpec(fs=100)
    x = rng.normal(0, .2, (16, 12, spec.n)).astype(np.float32)
    joint = JointNet("VICReg", 6, (0, 1))
    batch = dict(signals=torch.from_numpy(x), mask=torch.ones(16, 12), table=torch.randn(16, 6))
    optimiser = torch.optim.SGD(joint.parameters(), .01)
    before = joint.encoder.stem.conv.weight.detach().clone()
    joint.loss(batch, 0)["total"].backward()
    optimiser.step()
    assert not torch.equal(before, joint.encoder.stem.conv.weight)
    net = take_encoder(EcgNet(("I50", "N18")), joint).eval()
    h, truth = rng.normal(size=(60, net.encoder.d)), (rng.random((60, 2)) < .5).astype(float)
    reader = calibrate(fit_reader(h, truth, ("potassium high", "sodium low")), h, truth)
    blank = Normaliser(np.zeros(12, np.float32), np.ones(12, np.float32))
    folder = save_clinical_model(tmp_path / "model", ClinicalModel(net, reader, spec, blank, pd.DataFrame({"target": reader.targets})))
    np.save(tmp_path / "x.npy", x)
    ran = subprocess.run([sys.executable, "-c", READ, str(folder), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")],
                         cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    here = np.concatenate(read_ecgs(load_clinical_model(folder), x, np.ones(x.shape[:2], bool)), 1)
    assert np.array_equal(np.load(tmp_path / "y.npy"), here)


def test_the_same_seed_trains_to_the_same_bytes(tmp_path):
    from peace_nb.clinical.joint import JointNet
    from peace_nb.signals.prepare import Normaliser, SignalSpec
    from peace_nb.simulation.simulator import simulate_blocks
    from peace_nb.store.store import SignalStore
    from peace_nb.training.checkpoint import read_tensors, tensor_hash
    from peace_nb.training.clinical_stages import ClinicalDataset
    from peace_nb.training.trainer import TrainConfig, train
    spec = SignalSpec(fs=100)
    store = SignalStore.create(tmp_path / "store", spec, simulate_blocks(60, spec, seed=1), total=60)
    rng = np.random.default_rng(0)
    table, targets = rng.normal(size=(60, 6)), np.where(rng.random((60, 2)) < .5, 1.0, np.nan)
    labels = pd.DataFrame({"I50": rng.random(60) < .5}).astype(float)
    data = ClinicalDataset(store, np.arange(60), Normaliser.fit([store.batch(np.arange(60))]), labels, table, targets)
    for how in ("VICReg", "SIGReg"):
        hashes = set()
        for k in range(2):
            train(JointNet(how, 6, (0, 1)), data, None, TrainConfig(epochs=1, batch_size=20), tmp_path / how / str(k), progress=False)
            hashes.add(tensor_hash(read_tensors(tmp_path / how / str(k) / "best.safetensors")[0]))
        assert len(hashes) == 1
