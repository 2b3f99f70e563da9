"""Try other records and tables than CI does, for as long as wanted: python tests/tools/long.py MINUTES

Runs the property tests again and again, with 600 new examples each and a new seed; stops at the first failure and shows
how to repeat it. Nothing is stored."""
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def main():
    end = time.monotonic() + 60 * float(sys.argv[1])
    seed = time.time_ns() % 10**9
    while time.monotonic() < end:
        seed += 1
        ran = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "--hypothesis-profile=long",
                              f"--hypothesis-seed={seed}", "-k", "not how_a_table and not identifiers",
                              str(TESTS / "test_records_by_hand.py"), str(TESTS / "test_odd_tables.py")], cwd=TESTS.parent)
        if ran.returncode: sys.exit(f"failed with --hypothesis-seed={seed}")
    print("nothing was found")


if __name__ == "__main__": main()
