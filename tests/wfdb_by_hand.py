"WFDB records by arithmetic alone, after header(5) and signal(5): neither `wfdb` nor the package under test is asked."
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
