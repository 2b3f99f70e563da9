"WFDB records by arithmetic alone, after header(5) and signal(5): neither `wfdb` nor the package under test is asked."
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# format -> (lowest and highest count that is a sample, the count that means "no sample")
COUNTS = {"8": (-2**15, 2**15 - 1, None), "80": (-127, 127, -128), "16": (-32767, 32767, -32768),
          "61": (-32767, 32767, -32768), "160": (-32767, 32767, -32768), "24": (1 - 2**23, 2**23 - 1, -2**23),
          "32": (1 - 2**31, 2**31 - 1, -2**31), "212": (-2047, 2047, -2048), "310": (-511, 511, -512),
          "311": (-511, 511, -512)}


def _twelve(v: np.ndarray) -> bytes:
    "Two samples in three bytes: the middle one holds the high four bits of both."
    odd = len(v) % 2
    a, b = np.pad(v, (0, odd)).reshape(-1, 2).T & 0xFFF
    three = np.stack([a & 255, a >> 8 | (b >> 8) << 4, b & 255], 1).astype(np.uint8).tobytes()
    return three[:-1] if odd else three


def _ten_in_pairs(v: np.ndarray) -> bytes:
    "Three samples in two words: the third lends its five low bits to the first word and its high bits to the second."
    a, b, c = np.pad(v, (0, -len(v) % 3)).reshape(-1, 3).T & 0x3FF
    words = np.stack([a << 1 | (c & 31) << 11, b << 1 | (c >> 5) << 11], 1).astype("<u2").tobytes()
    return words[: 4 * (len(v) // 3) + (0, 2, 4)[len(v) % 3]]


def _ten_in_fours(v: np.ndarray) -> bytes:
    "Three samples in thirty bits of a word of four bytes."
    a, b, c = np.pad(v, (0, -len(v) % 3)).reshape(-1, 3).T & 0x3FF
    words = (a | b << 10 | c << 20).astype("<u4").tobytes()
    return words[: 4 * (len(v) // 3) + (0, 2, 3)[len(v) % 3]]


def packed(v: np.ndarray, fmt: str) -> bytes:
    "Samples in the order of the file as its bytes; format 8 is given differences."
    v = np.asarray(v, np.int64)
    if fmt == "8": return v.astype(np.int8).tobytes()
    if fmt == "80": return (v + 128).astype(np.uint8).tobytes()
    if fmt == "16": return v.astype("<i2").tobytes()
    if fmt == "61": return v.astype(">i2").tobytes()
    if fmt == "160": return (v + 32768).astype("<u2").tobytes()
    if fmt == "24": return v.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    if fmt == "32": return v.astype("<i4").tobytes()
    return {"212": _twelve, "310": _ten_in_pairs, "311": _ten_in_fours}[fmt](v)


@dataclass
class Channel:
    "One signal line and what it means."
    counts: np.ndarray      # (T * frame,) as they lie in the file
    name: str               # as the header writes it
    lead: str | None        # what it means; None: no lead
    sign: int = 1           # -1 where the lead is stored upside down
    fmt: str = "16"
    gain: str = "1000"      # as the header writes it
    steps: float = 1000.    # what that is
    baseline: int | None = 0    # None: not written, so it is the zero of the converter
    zero: int = 0
    unit: str = "/mV"       # with its stroke; empty: none
    scale: float | None = 1.    # millivolts a unit; None: no voltage
    frame: int = 1
    skew: int = 0           # frames
    first: int | None = None    # initial value, format 8 needs it

    def millivolts(self) -> np.ndarray:
        x = (self.counts - float(self.zero if self.baseline is None else self.baseline)) / self.steps * (self.scale or 1)
        x[self.counts == COUNTS[self.fmt][2]] = np.nan
        late = self.skew * self.frame
        return self.sign * np.append(x[late:], np.full(min(late, len(x)), np.nan))

    def line(self, file: str, offset: int, sums: bool) -> str:
        how = (f"x{self.frame}" if self.frame > 1 else "") + (f":{self.skew}" if self.skew else "")
        how += f"+{offset}" if offset else ""
        base = "" if self.baseline is None else f"({self.baseline})"
        first = (self.counts[0] if sums or self.fmt == "8" else 0) if self.first is None else self.first
        total = int(self.counts.sum()) % 65536 if sums else 0
        return f"{file} {self.fmt}{how} {self.gain}{base}{self.unit} 16 {self.zero} {first} {total} 0 {self.name}"

    def stored(self) -> np.ndarray:
        if self.fmt != "8": return self.counts
        first = self.counts[0] if self.first is None else self.first
        return np.diff(self.counts, prepend=first)


@dataclass
class Written:
    "A record in one segment: its channels by file, and the liberties a header may take."
    name: str
    files: dict             # file name -> list of Channel, all of one format
    rate: float             # frames a second
    rate_text: str = ""
    length: int | None = None   # what the header says; None: nothing
    when: str = ""
    sums: bool = True
    offsets: dict = field(default_factory=dict)
    encoding: str = "utf-8"
    end: str = "\n"
    comments: tuple = ()
    absent: tuple = ()      # names of leads announced with the file `~`

    @property
    def channels(self) -> list: return [c for cs in self.files.values() for c in cs]
    @property
    def frames(self) -> int: return len(self.channels[0].counts) // self.channels[0].frame

    def text(self) -> str:
        lines = [c.line(f, self.offsets.get(f, 0), self.sums) for f, cs in self.files.items() for c in cs]
        lines += [f"~ 0 200 12 0 0 0 0 {lead}" for lead in self.absent]
        first = f"{self.name} {len(lines)} {self.rate_text or f'{self.rate:.10g}'}"
        first += ("" if self.length is None else f" {self.length}") + self.when
        before, after = self.comments[:1], self.comments[1:]
        return self.end.join([*(f"# {c}" for c in before), first, *lines, *(f"#{c}" for c in after)]) + self.end

    def write(self, folder: Path) -> Path:
        (folder / f"{self.name}.hea").write_bytes(self.text().encode(self.encoding))
        for file, channels in self.files.items():
            frames = [c.stored().reshape(-1, c.frame) for c in channels]
            data = packed(np.concatenate(frames, 1).ravel(), channels[0].fmt)
            (folder / file).write_bytes(bytes(self.offsets.get(file, 0)) + data)
        return folder / self.name

    def leads(self) -> dict: # lead -> (T * frame,) millivolts
        "What a reader has to find."
        found = {c.lead: c.millivolts() for c in self.channels if c.lead}
        return found | {lead: np.full(self.frames, np.nan) for lead in self.absent}


@dataclass
class Segments:
    "A record of several segments, all with as many samples a frame; a number is a gap of so many frames."
    name: str
    parts: list
    layout: str = ""        # text of a layout segment, empty: fixed layout
    total: bool = True      # does the header say the length?

    def write(self, folder: Path) -> Path:
        lines, frames = [], 0
        if self.layout:
            (folder / f"{self.name}_layout.hea").write_text(self.layout, encoding="utf-8")
            lines.append(f"{self.name}_layout 0")
        for part in self.parts:
            n = part if isinstance(part, int) else part.frames
            if not isinstance(part, int): part.write(folder)
            lines.append(f"{'~' if isinstance(part, int) else part.name} {n}")
            frames += n
        one = next(p for p in self.parts if not isinstance(p, int))
        signals = len({c.lead or c.name for p in self.parts if not isinstance(p, int) for c in p.channels})
        first = f"{self.name}/{len(lines)} {signals} {one.rate:.10g}{f' {frames}' if self.total else ''}"
        (folder / f"{self.name}.hea").write_text("\n".join([first, *lines]) + "\n", encoding="utf-8")
        return folder / self.name

    def leads(self) -> dict:
        one = next(p for p in self.parts if not isinstance(p, int))
        frame = one.channels[0].frame
        names = {lead for p in self.parts if not isinstance(p, int) for lead in p.leads()}
        found = {lead: [] for lead in names}
        for part in self.parts:
            n = (part if isinstance(part, int) else part.frames) * frame
            here = {} if isinstance(part, int) else part.leads()
            for lead in names: found[lead].append(here.get(lead, np.full(n, np.nan)))
        return {lead: np.concatenate(xs) for lead, xs in found.items()}


# --- and back: what a strict header means ------------------------------------------------------------------------

def unpacked(data: bytes, fmt: str, n: int) -> np.ndarray:
    "The first `n` samples of a file; format 8 gives differences."
    b = np.frombuffer(data, np.uint8).astype(np.int64)
    if fmt == "8": v = b - 256 * (b > 127)
    elif fmt == "80": v = b - 128
    elif fmt in ("16", "61", "160"):
        low, high = (b[1::2], b[0::2]) if fmt == "61" else (b[0::2], b[1::2])
        v = low[:len(high)] + 256 * high[:len(low)]
        v = v - 32768 if fmt == "160" else v - 65536 * (v > 32767)
    elif fmt in ("24", "32"):
        k = int(fmt) // 8
        v = sum(b[: len(b) // k * k].reshape(-1, k)[:, i] << 8 * i for i in range(k))
        v = v - 2 ** int(fmt) * (v >= 2 ** (int(fmt) - 1))
    elif fmt == "212":
        a, m, c = np.pad(b, (0, -len(b) % 3)).reshape(-1, 3).T
        v = np.stack([a | (m & 15) << 8, c | (m >> 4) << 8], 1).ravel()
        v = v - 4096 * (v > 2047)
    else:
        w = np.pad(b, (0, -len(b) % 4)).reshape(-1, 4)
        w = w[:, 0] | w[:, 1] << 8 | w[:, 2] << 16 | w[:, 3] << 24
        if fmt == "311": v = np.stack([w, w >> 10, w >> 20], 1)
        else: v = np.stack([w >> 1, w >> 17, (w >> 11 & 31) | (w >> 27) << 5], 1)
        v = (v & 1023).ravel()
        v = v - 1024 * (v > 511)
    return v[:n]


_NUMBER = r"-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"
_FIRST = re.compile(rf"([-\w]+) (\d+)(?: (\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?:/{_NUMBER}(?:\({_NUMBER}\))?)?"
                    r"(?: (\d+)(?: [\d:.]+(?: [\d/]+)?)?)?)?")
_LINE = re.compile(rf"([-\w.~]+) (\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?(?: ({_NUMBER})(?:\((-?\d+)\))?(?:/(\S+))?"
                   r"(?: (\d+)(?: (-?\d+)(?: (-?\d+)(?: (-?\d+)(?: (\d+)(?: (.+))?)?)?)?)?)?)?")
_SCALE = {"mv": 1., "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3, "nv": 1e-6}


def meant(data: bytes, folder: Path): # (lead -> (T,) millivolts, Hz), or None where the header is not strictly a header
    "What a header of one segment says of the files in a folder, word for word as header(5) explains it; no sign, no alias."
    try: text = data.decode("utf-8-sig")
    except UnicodeDecodeError: text = data.decode("latin-1")
    lines = [" ".join(s.split()) for s in re.split("\r\n|\r|\n", text)]
    lines = [s for s in lines if s and not s.startswith("#")]
    first, found = _FIRST.fullmatch(lines[0]) if lines else None, [_LINE.fullmatch(s) for s in lines[1:]]
    if first is None or not found or None in found or int(first[2]) != len(found): return None
    of, rows = {}, [m.groups() for m in found]
    for i, row in enumerate(rows): of.setdefault(row[0], []).append(i)
    length, out, frames = int(first[4] or 0), {}, {}
    for file, mine in of.items():
        fmts, offsets = {rows[i][1] for i in mine}, {int(rows[i][4] or 0) for i in mine}
        if file == "~" or len(fmts | {None}) != 2 or len(offsets) != 1 or not fmts <= {*COUNTS}: return None
        if not (folder / file).is_file(): return None
        fmt, f = fmts.pop(), [int(rows[i][2] or 1) or 1 for i in mine]
        v = unpacked((folder / file).read_bytes()[offsets.pop():], fmt, 10**9)
        T = length or len(v) // sum(f)
        if len(v) < T * sum(f) or not T: return None
        v = v[:T * sum(f)].reshape(T, sum(f))
        for i, a, b in zip(mine, np.cumsum([0, *f]), np.cumsum(f)):
            counts, row = v[:, a:b].ravel(), rows[i]
            if fmt == "8": counts = int(row[10] or 0) + np.cumsum(counts)
            base = int(row[9] or 0) if row[6] is None else int(row[6])
            one = Channel(counts, row[13] or "", None, 1, fmt, "", float(row[5] or 0) or 200., base,
                          scale=_SCALE.get((row[7] or "mV").lower()), frame=b - a, skew=int(row[3] or 0))
            if one.skew > T: return None
            if one.scale: out[i], frames[i] = (one.name, one.millivolts()), b - a
    if len({n for n, _ in out.values()}) < len(out): return None
    return {n: x for i, (n, x) in out.items() if frames[i] == max(frames.values())}, float(first[3] or 250)
