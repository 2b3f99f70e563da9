"What the fuzzer of tests/tools/fuzz.py found worth keeping: every header is read right, or refused in one sentence."
from pathlib import Path

import pytest
from fuzzed import SEEDS, check_header, shelf

from peace_nb.cohorts.records import read_record
from peace_nb.settings import PeaceError

KEPT = Path(__file__).parent / "data" / "fuzz_headers.txt"


def kept() -> list:
    lines = KEPT.read_text(encoding="ascii").splitlines()
    return [line.encode("ascii").decode("unicode_escape").encode("latin-1") for line in lines]


def test_every_header_is_read_right_or_refused(tmp_path):
    shelf(tmp_path)
    outcomes = [check_header(data, tmp_path) for data in [*SEEDS, *kept()]]
    assert sum(o.startswith("read") for o in outcomes) > 30 and outcomes.count("bad header") > 20
    assert len({*outcomes}) > 8, {*outcomes}


@pytest.mark.parametrize("line, words", [
    ("r 1 -500 0", "no sampling rate"), ("r 1 500,5 0", "no sampling rate"), ("r 1 500 5000.0", "no number of samples"),
    ("r 1.5 500 0", "no number of signals"), ("r 1 1e400 0", "no number that a header can mean")])
def test_a_first_line_with_an_odd_number_is_refused(tmp_path, line, words):
    refused(shelf(tmp_path), f"{line}\nr.dat 16 1000(0)/mV 16 0 0 0 0 II\n", words)


@pytest.mark.parametrize("line", [
    "r.dat 16.5 1000(0)/mV 16 0 0 0 0 II", "r.dat 16x2y 1000(0)/mV 16 0 0 0 0 II", "r.dat 16 1000,5(0)/mV 16 0 0 0 0 II",
    "r.dat 16 1000(0)/mV -16 0 0 0 0 II", "r.dat 16 1000(0)/mV 16 +5 0 0 0 II", "r.dat 16 1000(0)/mV 16 0 0.5 0 0 II",
    "r.dat 16 (0)/mV 16 0 0 0 0 II", "r.dat 16 II"])
def test_fields_that_would_slide_are_refused(tmp_path, line):
    "Read leniently, each of these gives another gain, zero or name than was meant."
    refused(shelf(tmp_path), f"r 1 500 0\n{line}\n", "cannot be taken apart")


def test_a_segment_line_is_a_name_and_a_number(tmp_path):
    refused(shelf(tmp_path), "r/2 1 100 200\nra 100.5\nrb 100\n", "no segment and its length")


def refused(folder: Path, header: str, words: str):
    (folder / "r.hea").write_text(header)
    with pytest.raises(PeaceError, match=words): read_record(folder / "r", min_seconds=0)
