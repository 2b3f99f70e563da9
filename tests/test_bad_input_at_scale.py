"""Two thousand records, one in a hundred spoiled in each way: the store lists every one of them, by kind, and no other."""
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import wfdb

from peace_nb.cohorts.load import load_cohort
from peace_nb.signals.prepare import FAULTS, LEADS, RecordError, SignalSpec
from peace_nb.simulation.cohorts import write_simulated_cohort
from peace_nb.store.build import build_store
from peace_nb.settings import PeaceError

N, EACH, LENGTH = 2000, 20, 3000           # records, records a fault (1 %), samples (6 s at 500 Hz)


def record_text(name: str, template: list) -> str:
    return "\n".join(line.replace("good", name) for line in template) + "\n"


def fields(line: str, **changes) -> str:
    "A signal line with some of its fields changed: file, fmt, gain, checksum, name."
    parts = line.split()
    at = {"file": 0, "fmt": 1, "gain": 2, "initial": 5, "checksum": 6, "name": 8}
    for key, value in changes.items(): parts[at[key]] = str(value)
    return " ".join(parts)


def first_line(text: str, at: int, value) -> str:
    "The record line with one field changed: 1 signals, 2 rate, 3 length."
    lines = text.split("\n")
    parts = lines[0].split()
    parts[at] = str(value)
    lines[0] = " ".join(parts)
    return "\n".join(lines)


def every_lead(text: str, **changes) -> str:
    return "\n".join(
        fields(line, **{k: v(i) if callable(v) else v for k, v in changes.items()}) if 0 < i <= 12 else line
        for i, line in enumerate(text.split("\n"))
    )


def one_lead(text: str, lead: int, **changes) -> str:
    return "\n".join(fields(line, **changes) if i == lead + 1 else line for i, line in enumerate(text.split("\n")))


def with_lead(data: bytes, lead: int, value: int) -> bytes:
    d = np.frombuffer(data, "<i2").reshape(-1, 12).copy()
    d[:, lead] = value
    return d.tobytes()


def total(value: int) -> int: return int(value * LENGTH) % 65536


# name -> (header text, data, name of the record, name of its neighbour) -> (header bytes or None, data bytes or
# None); kind, or the remark of a record that stays
SPOIL = {
    "no header": (lambda h, d, n, o: (None, d), "missing header"),
    "no signal": (lambda h, d, n, o: (h, None), "missing signal"),
    "cut off": (lambda h, d, n, o: (h, d[: len(d) // 2]), "truncated"),
    "one byte short": (lambda h, d, n, o: (h, d[:-1]), "truncated"),
    "empty signal": (lambda h, d, n, o: (h, b""), "truncated"),
    "empty header": (lambda h, d, n, o: (b"", d), "bad header"),
    "header cut off": (lambda h, d, n, o: (h[: len(h) // 2], d), "bad header"),
    "not UTF-8": (lambda h, d, n, o: (b"\xff\xfe" + bytes(range(128, 256)) * 5, d), "bad header"),
    "a picture": (lambda h, d, n, o: (b"\x89PNG\r\n\x1a\n" + bytes(400), d), "bad header"),
    "a lead line lost": (lambda h, d, n, o: ("\n".join(h.split("\n")[:12]) + "\n", d), "bad header"),
    "no signals named": (lambda h, d, n, o: (f"{n} 0 500 {LENGTH}\n", d), "bad header"),
    "neighbour's header": (lambda h, d, n, o: (h.replace(n, o), d), "wrong file"),
    "neighbour's signal": (lambda h, d, n, o: (h.replace(f"{n}.dat", f"{o}.dat"), d), "wrong file"),
    "outside its folder": (lambda h, d, n, o: (h.replace(f"{n}.dat", f"../../{n}.dat"), d), "bad header"),
    "wrong checksum": (lambda h, d, n, o: (one_lead(h, 4, checksum=12345), d), "checksum"),
    "one bit turned": (lambda h, d, n, o: (h, d[:999] + bytes([d[999] ^ 16]) + d[1000:]), "checksum"),
    "a billion samples": (lambda h, d, n, o: (first_line(h, 3, 10**9), d), "absurd size"),
    "a million channels": (lambda h, d, n, o: (first_line(h, 1, 10**6), d), "bad header"),
    "unknown unit": (lambda h, d, n, o: (h.replace("/mV", "/furlong"), d), "unit"),
    "unknown leads": (lambda h, d, n, o: (every_lead(h, name=lambda i: f"X{i}"), d), "lead names"),
    "a lead twice": (lambda h, d, n, o: (one_lead(h, 4, name="II"), d), "lead names"),
    "two hertz": (lambda h, d, n, o: (first_line(h, 2, 2), d), "sampling rate"),
    "a megahertz": (lambda h, d, n, o: (first_line(h, 2, 10**6), d), "sampling rate"),
    "four seconds": (lambda h, d, n, o: (first_line(h, 2, 750), d), "too short"),
    "all zero": (lambda h, d, n, o: (every_lead(h, initial=0, checksum=0), bytes(len(d))), "no usable lead"),
    "constant": (
        lambda h, d, n, o: (every_lead(h, initial=7, checksum=total(7)), np.full(12 * LENGTH, 7, "<i2").tobytes()),
        "no usable lead"
    ),
    "all NaN": (
        lambda h, d, n, o: (
            every_lead(h, initial=-32768, checksum=total(-32768)), np.full(12 * LENGTH, -32768, "<i2").tobytes()
        ),
        "no sample",
    ),
    "unknown format": (lambda h, d, n, o: (h.replace(".dat 16 ", ".dat 99 "), d), "unreadable"),
}
REMARK = {  # what costs one lead and not the record
    "NaN lead": (
        lambda h, d, n, o: (one_lead(h, 8, initial=-32768, checksum=total(-32768)), with_lead(d, 8, -32768)), "empty:V3"
    ),
    "flat lead": (lambda h, d, n, o: (one_lead(h, 2, initial=50, checksum=total(50)), with_lead(d, 2, 50)), "flat:III"),
    "one unknown lead": (lambda h, d, n, o: (one_lead(h, 11, name="V9"), d), "missing:V6"),
}


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    "(root, kind of each spoiled record, remark of each that stays): a PTB-XL folder of 2,000 records made of a few hearts."
    root = tmp_path_factory.mktemp("scale")
    rng, home = np.random.default_rng(3), root / "records500"
    t = np.arange(LENGTH) / 500
    beat = np.exp(-0.5 * (((t % .8) - .3) / .012) ** 2)
    hearts = []
    for k in range(4):
        mv = np.linspace(-1 - .1 * k, 1.4, 12)[:, None] * beat + rng.normal(0, .02, (12, LENGTH))
        wfdb.wrsamp(
            "good", fs=500, units=["mV"] * 12, sig_name=[lead.upper() for lead in LEADS], p_signal=mv.T, fmt=["16"] * 12,
            adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(root)
        )
        hearts.append(((root / "good.hea").read_text().strip().split("\n"), (root / "good.dat").read_bytes()))
    cases = {**SPOIL, **REMARK}
    chosen = dict(zip(rng.permutation(N)[: EACH * len(cases)].tolist(), np.repeat(list(cases), EACH).tolist()))
    names = [f"{i + 1:05d}_hr" for i in range(N)]
    rows, bad, remark = [], {}, {}
    for i, name in enumerate(names):
        folder = home / f"{i // 1000:02d}000"
        folder.mkdir(parents=True, exist_ok=True)
        template, data = hearts[i % len(hearts)]
        head = record_text(name, template)
        if i in chosen:
            change, outcome = cases[chosen[i]]
            neighbour = names[next(j for j in range(i // 1000 * 1000, N) if j not in chosen)]
            head, data = change(head, data, name, neighbour)
            (bad if chosen[i] in SPOIL else remark)[str(i + 1)] = outcome
        if head is not None: (folder / f"{name}.hea").write_bytes(head if isinstance(head, bytes) else head.encode())
        if data is not None: (folder / f"{name}.dat").write_bytes(data)
        rows.append(
            (
                i + 1, 10_000 + i // 2, 40 + i % 40, i % 2,
                "{'NORM': 100.0}" if i % 3 else "{'AFIB': 0.0, 'PVC': 100.0}", 1 + i // 2 % 10,
                f"records500/{i // 1000:02d}000/{name}", f"records100/{name}"
            )
        )
    pd.DataFrame(
        rows, columns=["ecg_id", "patient_id", "age", "sex", "scp_codes", "strat_fold", "filename_hr", "filename_lr"]
    ).to_csv(root / "ptbxl_database.csv", index=False)
    (root / "scp_statements.csv").write_text(
        ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\nNORM,normal "
        "ECG,1.0,,,NORM,NORM\nAFIB,atrial fibrillation,,,1.0,,\nPVC,ventricular premature "
        "complex,,1.0,,,\n"
    )
    return root, bad, remark


@pytest.fixture(scope="module")
def built(spoiled, tmp_path_factory):
    "The store of the spoiled cohort."
    return build_store(
        load_cohort("ptb-xl", spoiled[0]), SignalSpec(fs=100, band=None), tmp_path_factory.mktemp("stores") / "s",
        progress=False
    )


def test_every_spoiled_record_is_set_aside_by_kind_and_no_other(spoiled, built):
    _, bad, _ = spoiled
    store = built
    aside = store.set_aside.set_index("record_id")
    assert aside.columns.tolist() == ["kind", "reason"] and aside.index.is_unique and set(aside.kind) <= set(FAULTS)
    assert set(aside.index) == set(bad), (
        sorted(set(bad) - set(aside.index))[:5], sorted(set(aside.index) - set(bad))[:5]
    )
    wrong = {i: (bad[i], aside.kind[i], aside.reason[i]) for i in bad if aside.kind[i] != bad[i]}
    assert not wrong, list(wrong.items())[:5]
    assert aside.kind.value_counts().to_dict() == pd.Series(bad).value_counts().to_dict()
    assert len(store) == N - len(bad) and store.meta["set_aside"] == len(bad) == EACH * len(SPOIL)


def test_every_reason_is_one_sentence_that_names_its_file(spoiled, built):
    for rid, row in built.set_aside.set_index("record_id").iterrows():
        assert "\n" not in row.reason and str(spoiled[0]) not in row.reason and len(row.reason) < 400
        if row.kind not in ("no usable lead", "lead names"): assert f"{int(rid):05d}_hr" in row.reason, row.reason


def test_a_bad_lead_costs_the_lead_and_says_so(spoiled, built):
    _, _, remark = spoiled
    store = built
    said = store.table.quality[store.table.quality.str.contains("empty:|flat:|missing:|nan:")]
    assert set(said.index) == set(remark)
    for rid, words in remark.items():
        assert words in said[rid]
        mask = store.mask[store.table.index.get_loc(rid)]
        assert mask.sum() == 11 and not mask[LEADS.index(words.split(":")[1])]


def test_a_promise_of_a_billion_samples_reserves_nothing(spoiled):
    root, bad, _ = spoiled
    cohort = load_cohort("ptb-xl", root)
    huge = [i for i, kind in bad.items() if kind == "absurd size"]
    tracemalloc.start()
    for rid in huge:
        with pytest.raises(RecordError, match="more than the"): cohort.raw(rid)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(huge) == EACH and peak < 5e6, peak


@pytest.fixture
def tables(tmp_path):
    "Small simulated folders, to have their tables rewritten."
    for name in ("ptb-xl", "zzu-pecg", "mimic-iv-ecg"):
        write_simulated_cohort(
            name, tmp_path / name, 12, seed=6, max_records=2, rates=(100,) if name == "ptb-xl" else (500,)
        )
    return tmp_path


TABLE = {
    "ptb-xl": ("ptbxl_database.csv", "sex", "age", "ecg_id"),
    "zzu-pecg": ("AttributesDictionary.csv", "Gender", "Age", "ECG_ID"),
    "mimic-iv-ecg": ("record_list.csv", None, None, "study_id")
}


@pytest.mark.parametrize("name", TABLE)
def test_a_table_with_a_byte_order_mark_and_windows_line_ends_is_the_same_table(tables, name):
    before = load_cohort(name, tables / name)
    for file in (tables / name).glob("*.csv"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    after = load_cohort(name, tables / name)
    pd.testing.assert_frame_equal(after.table, before.table)
    pd.testing.assert_frame_equal(after.labels, before.labels)


@pytest.mark.parametrize("name", TABLE)
def test_a_record_listed_twice_is_refused(tables, name):
    file = tables / name / TABLE[name][0]
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines + lines[-1:]), encoding="utf-8")
    with pytest.raises(PeaceError, match="more than once|duplicate") as e: load_cohort(name, tables / name)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name, sex, age", [("ptb-xl", 7, -4), ("zzu-pecg", "'Other'", "-3d")])
def test_a_sex_or_age_that_cannot_be_is_a_remark(tables, name, sex, age):
    file, s, a, key = (tables / name / TABLE[name][0], *TABLE[name][1:])
    df = pd.read_csv(file).astype({s: object, a: object})
    df.loc[0, s], df.loc[1, a] = sex, age
    df.to_csv(file, index=False)
    t = load_cohort(name, tables / name).table
    first, second, others = str(df[key][0]), str(df[key][1]), t.index[2:]
    assert (
        t.sex[first] is None
        and f"sex {str(sex).strip(chr(39))} is unknown" in t.quality[first]
        and np.isfinite(t.age_days[first])
    )
    assert np.isnan(t.age_days[second]) and "is impossible" in t.quality[second] and t.sex[second] in ("F", "M")
    assert not t.quality[others].str.contains("unknown|impossible").any()


def test_a_table_in_another_encoding_or_cut_in_a_cell_is_one_sentence(tables):
    file = tables / "ptb-xl" / "ptbxl_database.csv"
    whole = file.read_bytes()
    for content in (
        whole.replace(b"ecg_id", "ecg_id\xe9".encode("latin-1"), 1), b"\x00" * 500, whole[: len(whole) // 2] + b'"'
    ):
        file.write_bytes(content)
        try: cohort = load_cohort("ptb-xl", tables / "ptb-xl")
        except PeaceError as e: assert "\n" not in str(e) and "ptb" in str(e)
        else: assert len(cohort) < whole.count(b"\n")
