"""What several tests need: where real records are, and the smoke profile's paper, built once."""
import os
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def smoke() -> Path:
    "The build folder of the smoke profile; nothing is run where it is up to date."
    from peace_nb.pipeline import build_paper
    here = Path.cwd()
    os.chdir(ROOT)
    (ROOT / "paper" / "build").mkdir(exist_ok=True)
    try:
        with FileLock(ROOT / "paper" / "build" / ".tests.lock"): return build_paper("smoke", cores=2)   # one test process builds, the others wait
    finally: os.chdir(here)


@pytest.fixture(scope="session")
def samples() -> Path:
    "The folder of real samples; tests that need it are skipped where it is not known."
    if not os.environ.get("PEACE_SAMPLE_DATA"): pytest.skip("PEACE_SAMPLE_DATA is not set: no real records at hand")
    return Path(os.environ["PEACE_SAMPLE_DATA"])
