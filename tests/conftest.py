"""What several tests need: where real records are, and the smoke profile's paper, built once."""
import os
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# The same examples on every run; `--hypothesis-profile=long` (see tests/tools/long.py) draws others, and many more.
_SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
settings.register_profile("ci", deadline=None, derandomize=True, database=None, max_examples=40, print_blob=True,
                          suppress_health_check=_SLOW)
settings.register_profile("long", settings.get_profile("ci"), derandomize=False, max_examples=600)
settings.load_profile("ci")


def one_at_a_time() -> FileLock:
    "Held by the test process that builds, or that takes away files of the build; the others wait."
    (ROOT / "paper" / "build").mkdir(exist_ok=True)
    return FileLock(ROOT / "paper" / "build" / ".tests.lock", is_singleton=True)


@pytest.fixture
def alone(smoke):
    "The build is this test's alone, for as long as it runs."
    with one_at_a_time(): yield


@pytest.fixture(scope="session")
def smoke() -> Path:
    "The build folder of the smoke profile; nothing is run where it is up to date."
    from peace_nb.pipeline.build import build_paper
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        with one_at_a_time(): return build_paper("smoke", cores=2)
    finally: os.chdir(here)


@pytest.fixture(scope="session")
def samples() -> Path:
    "The folder of real samples; tests that need it are skipped where it is not known."
    if not os.environ.get("PEACE_SAMPLE_DATA"): pytest.skip("PEACE_SAMPLE_DATA is not set: no real records at hand")
    return Path(os.environ["PEACE_SAMPLE_DATA"])
