"""Random legal WFDB records, written by arithmetic, are read as what they mean; and one heart has one reading.

In CI a few hundred records, always the same ones. `python tests/tools/long.py 20` tries others for twenty minutes."""
import tempfile
from pathlib import Path

import numpy as np
import pytest
import wfdb
from hypothesis import given, strategies as st
from wfdb_by_hand import COUNTS, Channel, Segments, Written

from peace_nb.cohorts.records import MAX_SAMPLES, plain_counts, read_record, read_window
from peace_nb.settings import PeaceError
from peace_nb.signals import kernels
from peace_nb.signals.prepare import LEADS, SignalSpec, prepare_flagged, select_leads
from peace_nb.store.quick import prepare_counts
from peace_nb.store.writer import to_int16

MICROVOLT = 0.001
FORMATS = tuple(COUNTS)
UNITS = {"/mV": 1., "": 1., "/mv": 1., "/uV": 1e-3, "/µV": 1e-3, "/V": 1e3, "/nV": 1e-6, "/microvolts": 1e-3,
         "/millivolt": 1., "/μV": 1e-3}
STYLES = ("{}", "{}", "lower", "upper", "Lead {}", "ECG {}", "EKG_{}", "ECG Lead {}", "MDC_ECG_LEAD_{}", "{} # noisy")
MINUS = ("-{}", "−{}", "Lead -{}", "- {}")
OTHERS = (("ABP", "/mmHg"), ("RESP", "/NU"), ("SpO2", "/%"), ("x 1", "/°C"), ("PLETH", "/mV"))
RATES = (50, 62.5, 100, 125, 249.89, 250, 257, 360, 500, 999.56, 1000, 1024)
WHEN = ("", " 12:00:00", " 12:00:00 31/12/2006", " 0:0:1.5 1/1/2006", " 12:00:00 12/31/2006")
COMMENTS = ((), ("Age: 7", "Größe: 1,80 m"), ("<b>&amp;", "Dx: 426783006, 36 °C"))


def latin(text: str) -> bool:
    try: return bool(text.encode("latin-1")) or True
    except UnicodeEncodeError: return False


@st.composite
def leads_written(draw, lead, encoding) -> tuple:  # (text of the header, sign)
    style = draw(st.sampled_from(STYLES + MINUS))
    if encoding == "latin-1" and not latin(style): style = "{}"
    if style == "lower": return lead.lower(), 1
    if style == "upper": return lead.upper(), 1
    return style.format(lead), -1 if style in MINUS else 1


@st.composite
def gains(draw, fmt, encoding) -> dict:
    "Unit, gain and baseline with which the whole range of counts stays below 45 mV."
    unit = draw(st.sampled_from([u for u in UNITS if encoding != "latin-1" or latin(u)]))
    most = max(map(abs, COUNTS[fmt][:2]))
    least = 3 * most * UNITS[unit] / 45
    steps = float(f"{least * draw(st.sampled_from([1, 1.7, 3])):.3g}") * draw(st.sampled_from([1, 1, 1, -1]))
    text = f"{steps:.3E}" if draw(st.booleans()) else f"{steps:.12f}".rstrip("0").rstrip(".")
    if 0 < least < 200 and draw(st.booleans()): steps, text = 200., "0"
    base = draw(st.sampled_from([0, 1, -1, most // 2, -most // 2]))
    told = draw(st.booleans())
    return {"unit": unit, "scale": UNITS[unit], "gain": text, "steps": float(steps if text == "0" else text),
            "baseline": base if told else None, "zero": draw(st.sampled_from([0, 5, -7])) if told else base}


def random_counts(seed: int, n: int, fmt: str, gap: bool, frame: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    lo, hi, none = COUNTS[fmt]
    if fmt == "8": return rng.integers(-500, 500) + np.cumsum(rng.integers(-128, 128, n) // (1 + n // 200))
    v = rng.integers(lo, hi + 1, n)
    v[rng.integers(0, n)], v[rng.integers(0, n)] = lo, hi
    if gap: v[rng.integers(0, n, max(1, n // 50))] = none
    return v


@st.composite
def channels(draw, lead, fmt, encoding, frames, frame, skewed) -> Channel:
    seed, gap = draw(st.integers(0, 2**32 - 1)), draw(st.booleans())
    counts = random_counts(seed, frames * frame, fmt, gap)
    skew = draw(st.sampled_from([0, 0, 1, 3])) if skewed and frames > 3 else 0
    if lead is None:
        name, unit = draw(st.sampled_from(OTHERS))
        return Channel(counts, name, None, fmt=fmt, unit=unit, scale=None, frame=frame, skew=skew, gain="1e7", steps=1e7)
    name, sign = draw(leads_written(lead, encoding))
    return Channel(counts, name, lead, sign, fmt, frame=frame, skew=skew, **draw(gains(fmt, encoding)))


@st.composite
def records(draw, name="r", rate=None, frame=None, leads=None, formats=FORMATS, skewed=True) -> Written:
    "Any legal record in one segment."
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "latin-1"]))
    frames = draw(st.integers(1, 400))
    wanted = draw(st.lists(st.sampled_from(LEADS), min_size=1, max_size=12, unique=True)) if leads is None else leads
    wanted = [*wanted, *([None] if draw(st.integers(0, 3)) == 0 else [])]
    cuts = sorted(draw(st.lists(st.integers(1, len(wanted)), max_size=2, unique=True)) + [0, len(wanted)])
    groups = [wanted[a:b] for a, b in zip(cuts, cuts[1:]) if b > a]
    frame = draw(st.sampled_from([1, 1, 1, 2, 4, 5])) if frame is None else frame
    rate = draw(st.sampled_from(RATES)) / frame if rate is None else rate
    files = {}
    for k, group in enumerate(groups):
        fmt = draw(st.sampled_from(formats))
        of = [frame if lead or draw(st.booleans()) else 1 for lead in group]
        files[f"{name}{k or ''}.dat"] = [
            draw(channels(lead, fmt, encoding, frames, f, skewed)) for lead, f in zip(group, of)]
    alone = [cs for cs in files.values() if len(cs) * cs[0].frame < 2 and cs[0].fmt == "310"]
    length = frames if alone else draw(st.sampled_from([frames, frames, 0, None]))
    record = Written(name, files, rate, length=length, encoding=encoding,
                     when="" if length is None else draw(st.sampled_from(WHEN)), sums=draw(st.booleans()),
                     end=draw(st.sampled_from(["\n", "\n", "\r\n"])), comments=draw(st.sampled_from(COMMENTS)))
    record.rate_text = draw(st.sampled_from([f"{rate:.12g}", f"{rate:.12g}/{2 * rate:.12g}(-5)", f"{rate:.12e}"]))
    record.offsets = {f: draw(st.sampled_from([0, 0, 24, 7])) for f in files}
    return record


@st.composite
def segmented(draw) -> Segments:
    "Any legal record of two or three segments and gaps, in fixed or in variable layout."
    frame, rate = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from(RATES[3:]))
    fixed = draw(st.booleans())
    leads = draw(st.lists(st.sampled_from(LEADS), min_size=1, max_size=5, unique=True))
    parts = []
    for k in range(draw(st.integers(1, 3))):
        here = draw(st.permutations(leads)) if fixed else draw(
            st.lists(st.sampled_from(leads), min_size=1, max_size=len(leads), unique=True))
        part = draw(records(f"r{'abc'[k]}", rate / frame, frame, here))
        part.files = {f: kept for f, cs in part.files.items() if (kept := [c for c in cs if c.lead])}
        parts.append(part)
        if draw(st.integers(0, 2)) == 0: parts.append(draw(st.integers(1, 300)))
    if draw(st.integers(0, 4)) == 0: parts.insert(0, draw(st.integers(1, 300)))
    lines = [f"~ 0 {draw(st.sampled_from(['1000(0)/mV', '1(0)/uV', '200']))} 16 0 0 0 0 {lead}" for lead in leads]
    layout = "" if fixed else "\n".join([f"r_layout {len(leads)} {rate / frame:.10g} 0", *lines]) + "\n"
    return Segments("r", parts, layout, draw(st.booleans()))


def found_leads(path) -> tuple:  # (lead -> (T,) mV, rate)
    x, names, fs = read_record(path, min_seconds=0)
    x, mask = select_leads(x, names)
    return {lead: v for lead, v, there in zip(LEADS, x, mask) if there}, fs


def same(found: dict, wanted: dict):
    "The same leads with the same millivolts, to a microvolt, and the same samples missing."
    assert sorted(found) == sorted(wanted)
    for lead, x in wanted.items():
        assert found[lead].shape == x.shape, lead
        assert (np.isnan(found[lead]) == np.isnan(x)).all(), lead
        np.testing.assert_allclose(found[lead], x, atol=MICROVOLT / 2, rtol=0, err_msg=lead)


def no_sample(wanted: dict) -> bool: return all(np.isnan(x).all() for x in wanted.values())


@given(records())
def test_a_record_is_what_its_header_and_bytes_say(record):
    with tempfile.TemporaryDirectory() as folder:
        path, wanted = record.write(Path(folder)), record.leads()
        if no_sample(wanted):
            with pytest.raises(PeaceError, match="no valid sample"): found_leads(path)
            return
        found, fs = found_leads(path)
        same(found, wanted)
        assert fs == pytest.approx(record.rate * record.channels[0].frame, rel=1e-9)


@given(segmented())
def test_segments_are_what_their_headers_and_bytes_say(record):
    with tempfile.TemporaryDirectory() as folder:
        path, wanted = record.write(Path(folder)), record.leads()
        if no_sample(wanted):
            with pytest.raises(PeaceError, match="no valid sample"): found_leads(path)
            return
        found, fs = found_leads(path)
        missing = {lead: np.full_like(x, np.nan) for lead, x in wanted.items() if lead not in found and np.isnan(x).all()}
        same(found | missing, wanted)


@given(records(frame=1), st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_window_is_a_stretch_of_the_whole(record, first, n):
    first = first % record.frames
    n = 1 + n % (record.frames - first)
    wanted = {lead: x[first:first + n] for lead, x in record.leads().items()}
    with tempfile.TemporaryDirectory() as folder:
        path = record.write(Path(folder))
        if no_sample(wanted): return
        x, mask = select_leads(*read_window(path, first, n)[:2])
        same({lead: v for lead, v, there in zip(LEADS, x, mask) if there}, wanted)


@given(records(skewed=False))
def test_wfdb_agrees_where_it_reads_the_header_as_it_is_written(record):
    "wfdb drops what is not ASCII, knows no capital E and no odd date, and reads `-aVR` as a name like any other."
    record.encoding, record.when, record.comments, record.length = "utf-8", "", (), record.frames
    record.rate_text = f"{record.rate:.12f}".rstrip("0").rstrip(".")
    for c in record.channels: c.gain, c.name = c.gain if c.gain == "0" else f"{c.steps:.12f}", c.lead or c.name
    if not record.text().isascii(): return
    with tempfile.TemporaryDirectory() as folder:
        path = record.write(Path(folder))
        theirs = wfdb.rdrecord(str(path), smooth_frames=False)
        for c, x in zip(record.channels, theirs.e_p_signal):
            np.testing.assert_allclose(x * c.sign * (c.scale or 1), c.millivolts(), atol=1e-9, rtol=1e-9)


# --- one heart, many files ---------------------------------------------------------------------------------------

def heart(seed: int, seconds: float = 6.0, fs: int = 500) -> np.ndarray:  # (12, T) millivolts
    "Twelve leads of one beating heart, some with an offset; as smooth as a heart is."
    rng, t = np.random.default_rng(seed), np.arange(round(seconds * fs)) / fs
    beat = sum(a * np.exp(-0.5 * ((t % 0.8 - m) / s) ** 2)
               for a, m, s in ((.15, .2, .025), (1, .35, .012), (-.3, .38, .012), (.3, .6, .05)))
    return rng.uniform(-1.5, 1.5, (12, 1)) * beat + rng.uniform(-2, 2, (12, 1))


FINE = {"16": 8000, "61": 8000, "160": 8000, "24": 200_000, "32": 10**7}   # counts a millivolt: finer than a microvolt


@st.composite
def writings(draw, x, lead, fmt, encoding, frame, skew=0) -> Channel:
    "One lead in millivolts in another unit, gain, baseline, format and name."
    unit = draw(st.sampled_from([u for u in UNITS if encoding != "latin-1" or latin(u)]))
    name, sign = draw(leads_written(lead, encoding))
    per_mv = FINE[fmt] // draw(st.integers(1, 3)) * draw(st.sampled_from([1, -1]))
    base = draw(st.integers(-3000, 3000))
    counts = np.rint(sign * x * per_mv).astype(np.int64) + base
    gain = f"{per_mv * UNITS[unit]:.9E}" if draw(st.booleans()) else f"{per_mv * UNITS[unit]:.9f}"
    return Channel(np.roll(counts, skew * frame), name, lead, sign, fmt, gain, float(gain), base, 0, unit,
                   UNITS[unit], frame, skew)


@st.composite
def of_one_heart(draw, mv, name="r", frame=None) -> Written:
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "latin-1"]))
    frame = draw(st.sampled_from([1, 2, 4, 5])) if frame is None else frame
    order = draw(st.permutations(range(12)))
    cut = draw(st.integers(0, 11))
    files = {}
    for k, group in enumerate([order[:cut], order[cut:]]):
        fmt = draw(st.sampled_from(list(FINE)))
        if group: files[f"{name}{k}.dat"] = [draw(writings(mv[i], LEADS[i], fmt, encoding, frame)) for i in group]
    return Written(name, files, 500 / frame, length=draw(st.sampled_from([mv.shape[1] // frame, 0, None])),
                   encoding=encoding, sums=draw(st.booleans()), comments=draw(st.sampled_from(COMMENTS)))


def twelve(path) -> np.ndarray:
    x, names, fs = read_record(path)
    assert fs == 500
    x, mask = select_leads(x, names)
    assert mask.all()
    return x


@given(st.data(), st.integers(0, 10))
def test_one_heart_has_one_reading(data, seed):
    mv = heart(seed)
    with tempfile.TemporaryDirectory() as folder:
        if data.draw(st.booleans(), label="in segments"):
            cut, frame = 500 * data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 2, 4]))
            parts = [data.draw(of_one_heart(x, n, frame)) for n, x in (("ra", mv[:, :cut]), ("rb", mv[:, cut:]))]
            record = Segments("r", parts)
        else: record = data.draw(of_one_heart(mv))
        found = twelve(record.write(Path(folder)))
    assert np.abs(found - mv).max() < MICROVOLT


@given(st.data(), st.integers(0, 10))
def test_the_store_sees_the_same_heart_by_the_quick_way(data, seed):
    "Gain, unit and baseline of each lead are another; the stored microvolts are the same within one."
    if not kernels.warm(): pytest.skip("there is no compiler on this machine")
    mv, spec = heart(seed), SignalSpec(fs=250, seconds=5)
    wanted = to_int16(prepare_flagged(mv, list(LEADS), 500., spec)[0])[0].astype(int)
    units = [u for u in UNITS if u.isascii() and u]
    lines = [(data.draw(st.sampled_from(units)), data.draw(st.integers(2000, 8000)), data.draw(st.integers(-2000, 2000)))
             for _ in LEADS]
    made = [Channel(np.rint(x * g).astype(np.int64) + b, lead, lead, gain=f"{g * UNITS[u]:.9f}", baseline=b, unit=u)
            for x, lead, (u, g, b) in zip(mv, LEADS, lines)]
    with tempfile.TemporaryDirectory() as folder:
        path = Written("r", {"r.dat": made}, 500, length=mv.shape[1]).write(Path(folder))
        counts = plain_counts(str(path), MAX_SAMPLES)
        assert counts is not None
        assert np.abs(prepare_counts(counts, spec)[0] - wanted).max() <= 1
        careful = prepare_flagged(*read_record(path), spec)[0]
    assert np.abs(to_int16(careful)[0] - wanted).max() <= 1


# --- what is no longer right is refused --------------------------------------------------------------------------

@given(records(formats=("16", "61", "160", "80"), skewed=False), st.integers(0, 10**9), st.integers(0, 7))
def test_one_flipped_bit_is_noticed(record, where, bit):
    record.sums, record.offsets, record.length = True, {}, record.frames
    with tempfile.TemporaryDirectory() as folder:
        path = record.write(Path(folder))
        file = path.with_name(list(record.files)[where % len(record.files)])
        data = bytearray(file.read_bytes())
        data[where % len(data)] ^= 1 << bit
        file.write_bytes(bytes(data))
        sums = [int(c.counts.sum()) % 65536 for c in record.channels]
        if not any(sums): return        # zeros throughout mean that nobody took the sums
        with pytest.raises(PeaceError, match="damaged|no valid sample"): found_leads(path)


@given(records(), st.integers(1, 10**9))
def test_a_file_cut_short_is_noticed(record, cut):
    record.length = record.frames
    with tempfile.TemporaryDirectory() as folder:
        path = record.write(Path(folder))
        file = path.with_name(list(record.files)[cut % len(record.files)])
        data = file.read_bytes()
        file.write_bytes(data[:-(1 + cut % len(data))])
        with pytest.raises(PeaceError, match="truncated"): found_leads(path)
