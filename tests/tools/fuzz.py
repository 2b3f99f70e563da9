"""Look for headers that are read wrong, refused badly, or never finished; guided by the lines that they reach.

    pip install atheris
    python tests/tools/fuzz.py CORPUS -max_total_time=300

CORPUS is a folder, made where it is missing. What reaches new code is kept there, an input that breaks a rule of
tests/fuzzed.py ends the run and is written out as `crash-…`. Then

    python tests/tools/fuzz.py --keep CORPUS

adds what is worth keeping to tests/data/fuzz_headers.txt, which tests/test_fuzz_corpus.py replays: one input of each
outcome and shape, the shortest."""
import re
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
KEPT = TESTS / "data" / "fuzz_headers.txt"
WORDS = ("r.dat", "s.dat", "ra", "rb", "lay", "~", "/mV", "/uV", "/µV", "(0)", "1e3", "1E+03", "x2", ":3", "+24", "212", "310",
         "311", "61", "160", "80", "24", "32", "8", "-aVR", "Lead ", "V1", "II", "#", "12:00:00", "1/1/2006", "\r\n")


def escaped(word: str) -> str: return "".join(f"\\x{b:02x}" for b in word.encode())


def fuzz():
    import atheris
    with atheris.instrument_imports(include=["peace_nb.cohorts.records", "wfdb.io._header", "wfdb.io.header"]):
        from fuzzed import SEEDS, check_header, shelf
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for k, seed in enumerate(SEEDS): (corpus / f"seed{k}").write_bytes(seed)
    folder = shelf(Path(tempfile.mkdtemp()))
    words = folder / "words.dict"
    words.write_text("".join(f'"{escaped(w)}"\n' for w in WORDS))
    atheris.Setup([*sys.argv, f"-dict={words}", "-max_len=700", "-timeout=60"], lambda data: check_header(data, folder))
    atheris.Fuzz()


def shape(data: bytes, outcome: str) -> tuple:
    "Inputs of one shape are alike: the same outcome, and the same pattern of digits, letters and signs in each line."
    text = re.sub(r"\d+", "0", data.decode("latin-1"))
    return outcome, tuple(re.sub(r"[A-Za-z]+", "a", line)[:60] for line in re.split("[\r\n]+", text)[:2])


def keep():
    from fuzzed import check_header, shelf
    folder, best = shelf(Path(tempfile.mkdtemp())), {}
    for file in sorted(Path(sys.argv[2]).iterdir(), key=lambda f: (f.stat().st_size, f.name)):
        data = file.read_bytes()
        best.setdefault(shape(data, check_header(data, folder)), data)
    old = KEPT.read_text(encoding="ascii").splitlines() if KEPT.is_file() else []
    new = [data.decode("latin-1").encode("unicode_escape").decode("ascii") for data in best.values()]
    KEPT.write_text("\n".join(dict.fromkeys([*old, *new])) + "\n", encoding="ascii", newline="\n")
    print(f"{len(old)} inputs were kept, now {len({*old, *new})}")


if __name__ == "__main__": keep() if sys.argv[1] == "--keep" else fuzz()
