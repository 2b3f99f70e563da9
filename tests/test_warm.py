"Forked steps start like fresh ones, leave nothing behind, show what ordinary ones show, and end with their build."
import contextlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import nbformat
import psutil
import pytest

from peace_nb.pipeline import warm
from peace_nb.pipeline.runner import with_warnings
from peace_nb.pipeline.warm import ADDRESS, LAYERS, MODULE, Jobs, can_fork, warm_server

ROOT = Path(__file__).resolve().parents[1]
MARK = "PEACE_WARM_TEST"   # environment variable by which a test finds its processes

needs_fork = pytest.mark.skipif(not can_fork(), reason="steps are forked on Linux alone")

STEP = """
import sys
from peace_nb.settings import PeaceError
def main():
    from peace_nb.pipeline.runner import run_notebook
    notebook, out, threads = sys.argv[1:]
    try: entry = run_notebook(notebook, out, threads=int(threads))
    except PeaceError as error:
        print(f"peace-nb: {error}", file=sys.stderr)
        sys.exit(2)
    print(entry["peak_memory_mb"])
"""

# What a notebook can find out about the process it is in. Everything that a layer imports is imported first, so that
# a fresh kernel and a forked one have read the same code.
LOOK = """
import importlib, json, os, sys
from peace_nb.pipeline.warm import LAYERS, module_names
for layer in LAYERS_HERE:
    for name in LAYERS[layer]:
        for module in module_names(name): importlib.import_module(module)
import asyncio, decimal, gc, locale, logging, multiprocessing, random, resource, signal, tempfile, threading, warnings
import fastcore.imports, matplotlib, matplotlib.pyplot as plt, numba, numpy as np, pandas as pd, sklearn, tqdm.auto
def handlers():
    for name, logger in sorted(logging.root.manager.loggerDict.items()):
        for h in getattr(logger, "handlers", []): yield name, type(h).__name__, h.level
mask = os.umask(0); os.umask(mask)
seen = {
    **{f"${k}": v for k, v in os.environ.items() if k not in ("JPY_PARENT_PID", "PEACE_STEP")},
    "folder": os.getcwd(), "path": sys.path,
    "arguments": [a for a in sys.argv if "kernel-" not in a and "/tmp" not in a],
    "flags": str(sys.flags), "options": sys._xoptions, "umask": mask, "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "affinity": sorted(os.sched_getaffinity(0)), "limits": str([resource.getrlimit(r) for r in range(16)]),
    "leader": os.getpgid(0) == os.getpid() == os.getsid(0),
    "input": os.readlink("/proc/self/fd/0")[:4] in ("pipe", "/dev"),
    "signals": [str(signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGHUP)],
    "blocked": str(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "wakeup": signal.set_wakeup_fd(-1) == -1,
    "threads": sorted(type(t).__name__ for t in threading.enumerate()),
    "streams": [type(s).__module__ for s in (sys.stdout, sys.stderr)],
    "encoding": [locale.getlocale(), sys.getfilesystemencoding()],
    "recursion": sys.getrecursionlimit(), "switch": sys.getswitchinterval(),
    "collector": [gc.isenabled(), gc.get_threshold()], "temporary": tempfile.gettempdir(),
    "start": [multiprocessing.get_start_method(allow_none=True), multiprocessing.current_process().name],
    "decimal": str(decimal.getcontext()), "numpy": [np.geterr(), np.get_printoptions()["precision"]],
    "pandas": pd.describe_option(_print_desc=False).splitlines(), "sklearn": str(sklearn.get_config()),
    "fastcore": str([v for k, v in vars(fastcore.imports).items() if k.startswith("IN_")]),
    "bars": str(tqdm.auto.tqdm), "numba": {k: str(v) for k, v in vars(numba.config).items() if k.isupper()},
    "settings of figures": {k: str(v) for k, v in matplotlib.rcParams.items()}, "figures": plt.get_fignums(),
    "filters": sorted(set(map(str, warnings.filters))), "logs": list(handlers()),
    "main": sys.modules["__main__"].__name__,
    "policy": type(asyncio.get_event_loop_policy()).__name__,
}
if "torch" in sys.modules:
    import torch
    seen |= {"torch threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
             "torch type": str(torch.get_default_dtype()),
             "torch modes": [torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()]}
print("SEEN" + json.dumps(seen, default=str))
"""

DRAW = """
import random, sys, numpy as np
drawn = [random.random(), np.random.random()]
if "torch" in sys.modules: drawn.append(sys.modules["torch"].rand(1).item())
print("SEEN" + str(drawn))
"""

# Changes whatever LOOK looks at, and a module.
CHANGE = """
import decimal, gc, logging, os, random, signal, sys, tempfile, warnings
import matplotlib, matplotlib.pyplot as plt, numpy as np, pandas as pd
from peace_nb import settings
settings.CHANGED = np.CHANGED = "by another step"
os.environ["PEACE_CHANGED"], os.environ["OMP_NUM_THREADS"] = "1", "7"
os.environ.pop("HOME", None)
os.chdir("/"), os.umask(0o077), sys.path.insert(0, "/changed"), sys.argv.append("changed")
random.seed(1), np.random.seed(1)
warnings.filterwarnings("ignore", "changed")
matplotlib.rcParams["font.size"] = 99
np.seterr(all="ignore"), np.set_printoptions(precision=2), pd.set_option("display.max_rows", 3)
decimal.getcontext().prec = 3
gc.disable(), sys.setrecursionlimit(4321), sys.setswitchinterval(1), signal.signal(signal.SIGHUP, signal.SIG_IGN)
tempfile.tempdir = "/"
logging.getLogger("transformers").addHandler(logging.NullHandler())
if "torch" in sys.modules:
    import torch
    torch.set_num_threads(2), torch.manual_seed(5), torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
"""

SHOW = [
    "import sys, logging, warnings\nwith warnings.catch_warnings(action='ignore'): import transformers\n"
    "import pandas as pd, matplotlib.pyplot as plt\nprint('out')\nprint('err', file=sys.stderr)",
    "warnings.warn('careful')",
    "logging.getLogger('transformers').warning('a library says so')\nlogging.warning('the root says so')",
    "pd.DataFrame({f'column {i}': [1, 2] for i in range(30)})",
    "print(pd.DataFrame({f'column {i}': [1, 2] for i in range(30)}))",
    "fig, ax = plt.subplots(figsize=(2, 2))\nax.plot([1, 3, 2]);",
    "import subprocess\nsubprocess.run(['echo', 'from a child'], capture_output=True).stdout",
    "1 + 1",
    "raise ValueError('as it should')",
]


# Two layers that are imported quickly.
SMALL = {"light": ("papermill", "ipykernel.kernelapp", "ipykernel_launcher", "psutil", "peace_nb.pipeline.runner"),
         "second": ("numpy",)}


def notebook(path: Path, *cells: str) -> Path:
    "A notebook with these cells."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c, id=f"cell{i}") for i, c in enumerate(cells)])
    nb.metadata.kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nb, path)
    return path


def environment(folder: Path) -> dict:
    "What the steps of this file run with: the helper module can be imported, and one thread."
    (folder / "warm_step.py").write_text(STEP)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), MARK: uuid.uuid4().hex,
            **dict.fromkeys(warm.THREADS, "1"), "PYTHONWARNINGS": with_warnings(os.environ.get("PYTHONWARNINGS", ""))}


class Bench:
    "A folder, and a warm process for its steps."
    def __init__(self, folder: Path, env: dict):
        self.folder, self.env = folder, env
        self.ordinary = {k: v for k, v in env.items() if k != ADDRESS}

    def command(self, nb: Path, layer: str = "light", threads: int = 1, out: str = "out.ipynb") -> list[str]:
        return [sys.executable, "-m", MODULE, layer, str(nb), str(nb.parent / out), str(threads)]

    def run(self, nb: Path, layer: str = "light", forked: bool = True, threads: int = 1, ok: bool = True):
        "Run a notebook as a step, forked or the ordinary way; returns the finished process."
        if forked: cmd, env = self.command(nb, layer, threads), self.env
        else:
            program = "from warm_step import main; main()"
            cmd = [sys.executable, "-c", program, *self.command(nb, layer, threads)[4:]]
            env = self.ordinary
        done = subprocess.run(cmd, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert not ok or done.returncode == 0, done.stderr
        return done

    def seen(self, source: str, layer: str = "light", forked: bool = True, threads: int = 1):
        "What a notebook of one cell prints after SEEN."
        nb = notebook(self.folder / f"{uuid.uuid4().hex}.ipynb", source)
        self.run(nb, layer, forked, threads)
        outputs = nbformat.read(nb.parent / "out.ipynb", 4).cells[0].outputs
        text = "".join(o["text"] for o in outputs if o.get("name") == "stdout")
        return json.loads(text.partition("SEEN")[2])


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    with warm_server(environment(folder), command="warm_step", log=str(folder / "server.log")) as env:
        yield Bench(folder, env)


def marked(env: dict) -> list[psutil.Process]:
    "All processes that were started with an environment of this mark."
    found = []
    for p in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if p.environ().get(MARK) == env[MARK] and p.status() != psutil.STATUS_ZOMBIE: found.append(p)
    return found


def wait_until(condition, seconds: float) -> bool:
    "Whether a condition comes true in time."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition(): return True
        time.sleep(0.02)
    return bool(condition())


def look(layer: str) -> str:
    return LOOK.replace("LAYERS_HERE", repr(list(LAYERS)[:list(LAYERS).index(layer) + 1]))


FORKED = "forked = int('-m' not in open('/proc/self/cmdline').read().split(chr(0)))\n"


@needs_fork
@pytest.mark.parametrize("layer", LAYERS)
def test_starts_like_a_fresh_kernel(bench, layer):
    assert bench.seen(FORKED + "print('SEEN' + str([forked]))", layer) == [1]
    fresh, forked = bench.seen(look(layer), layer, forked=False), bench.seen(look(layer), layer)
    assert fresh.keys() == forked.keys()
    assert {k: (fresh[k], forked[k]) for k in fresh if fresh[k] != forked[k]} == {}


@needs_fork
@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_leaks_into_the_next_step(bench, layer):
    before = bench.seen(look(layer), layer)
    bench.run(notebook(bench.folder / "change.ipynb", CHANGE), layer)
    after = bench.seen(look(layer), layer)
    assert {k: (before[k], after[k]) for k in before if before[k] != after[k]} == {}
    modules = ("import numpy, peace_nb.settings as s\n"
               "print('SEEN' + str([int(hasattr(m, 'CHANGED')) for m in (numpy, s)]))")
    assert bench.seen(modules, layer) == [0, 0]


@needs_fork
def test_random_numbers_are_as_independent_as_those_of_fresh_processes(bench):
    drawn = [bench.seen(DRAW, layer) for layer in ("light", "light", "torch", "torch")]
    assert len({x for numbers in drawn for x in numbers}) == 2 + 2 + 3 + 3


@needs_fork
def test_light_kernels_know_no_torch(bench):
    has_torch = "import sys\nprint('SEEN' + str([int('torch' in sys.modules), int('transformers' in sys.modules)]))"
    assert bench.seen(has_torch, "light") == [0, 0]
    assert bench.seen(has_torch, "torch") == [1, 1]


@needs_fork
def test_layers_import_all_they_name(bench):
    bench.seen(DRAW, "torch")
    log = (bench.folder / "server.log").read_text()
    assert "light: ready" in log and "torch: ready" in log and "Traceback" not in log


@needs_fork
def test_shows_what_an_ordinary_kernel_shows(bench):
    nb = notebook(bench.folder / "show.ipynb", *SHOW)
    results = {}
    for forked in (False, True):
        done = bench.run(nb, "torch", forked, ok=False)
        executed = nbformat.read(bench.folder / "out.partial.ipynb", 4)
        cells = [c for c in executed.cells if c.cell_type == "code"]
        for c in cells: del c.metadata["papermill"], c.metadata["execution"]   # times
        said = done.stderr.strip().splitlines()[-1]
        results[forked] = done.returncode, said, unnumbered(cells), executed.metadata.language_info
    assert "show.ipynb stopped in cell 9: ValueError: as it should" in results[True][1] and results[True][0] == 2
    assert results[True] == results[False]
    kinds = [o["output_type"] for c in results[True][2] for o in c["outputs"]]
    assert {"stream", "execute_result", "display_data", "error"} <= set(kinds)
    assert "a library says so" in str(results[True][2][2]["outputs"])


def unnumbered(cells):
    "Cells whose tracebacks and warnings do not tell the number of the kernel's process, as in `ipykernel_123`."
    return json.loads(re.sub(r"ipykernel_\d+(/\d+)?", "ipykernel_N", json.dumps(cells)))


@needs_fork
def test_two_steps_at_once(bench):
    meet = ("from pathlib import Path\nimport time\nPath(r'{mine}').touch()\nend = time.time() + 60\n"
            "while not Path(r'{other}').exists(): assert time.time() < end")
    a, b = bench.folder / "a", bench.folder / "b"
    running = []
    for mine, other in ((a, b), (b, a)):
        nb = notebook(bench.folder / f"meet_{mine.name}.ipynb", meet.format(mine=mine, other=other))
        running.append(subprocess.Popen(bench.command(nb, out=f"met_{mine.name}.ipynb"), env=bench.env, cwd=ROOT))
    assert [p.wait(90) for p in running] == [0, 0]


@needs_fork
def test_another_number_of_threads_starts_an_ordinary_kernel(bench):
    threads = FORKED + "import torch\nprint('SEEN' + str([torch.get_num_threads(), forked]))"
    assert bench.seen(threads, "torch", threads=1) == [1, 1]
    assert bench.seen(threads, "torch", threads=2) == [2, 0]


@needs_fork
def test_several_threads_work_in_a_copy(tmp_path):
    product = FORKED + """
import numpy as np, torch
a = torch.ones(600, 600)
big = (a @ a).sum().item(), float((np.ones((600, 600)) @ np.ones((600, 600))).sum())
print("SEEN" + str([torch.get_num_threads(), int(big == (600.0 ** 3,) * 2), forked]))
"""
    layers = {"light": (*SMALL["light"], "numpy", "torch")}
    log = str(tmp_path / "server.log")
    with warm_server(environment(tmp_path), threads=2, layers=layers, command="warm_step", log=log) as env:
        assert Bench(tmp_path, env).seen(product, threads=2) == [2, 1, 1]


@needs_fork
def test_peak_memory_is_recorded(bench):
    hold = "import numpy as np, time\nheld = np.ones(50_000_000)\ntime.sleep(1.5)"
    nb = notebook(bench.folder / "memory.ipynb", hold)
    assert int(bench.run(nb).stdout.split()[-1]) > 400


@needs_fork
def test_what_is_registered_for_the_end_runs(bench):
    made = bench.folder / "at_the_end"
    source = f"""
import atexit, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
atexit.register(lambda: Path(r'{made}').with_suffix('.exit').touch())
ThreadPoolExecutor(1).submit(lambda: (time.sleep(.3), Path(r'{made}').with_suffix('.pool').touch()))
"""
    bench.run(notebook(bench.folder / "end.ipynb", source))
    assert wait_until(lambda: made.with_suffix(".exit").exists() and made.with_suffix(".pool").exists(), 5)


def test_client_imports_the_standard_library_alone():
    program = f"import sys; before = set(sys.modules); import {MODULE}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    parts = MODULE.split(".")
    itself = {".".join(parts[:i + 1]) for i in range(len(parts))}
    foreign = {m for m in done.stdout.split() if m.partition(".")[0] not in sys.stdlib_module_names}
    assert foreign == itself
    costs = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-c", f"import {MODULE}"], cwd=ROOT, check=True)
        after = os.times()
        costs.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(costs) < 0.15


def version(env: dict):
    "`peace-nb --version` through the client."
    cmd = [sys.executable, "-m", MODULE, "light", "--version"]
    return subprocess.run(cmd, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_without_a_server_all_is_as_ever(tmp_path):
    plain = subprocess.run([sys.executable, "-c", "from peace_nb.cli import main; main()", "--version"], cwd=ROOT,
                           capture_output=True, text=True)
    for address in ("off", str(tmp_path / "nobody")):
        env = {**os.environ, ADDRESS: address}
        done = version(env)
        assert (done.returncode, done.stdout, done.stderr) == (0, plain.stdout, "")


def test_switched_off(monkeypatch, tmp_path):
    monkeypatch.setenv(ADDRESS, "off")
    assert not can_fork()
    with warm_server({"A": "1"}) as env: assert env == {"A": "1", ADDRESS: "off"}


def test_other_systems_do_not_fork(monkeypatch):
    monkeypatch.delenv(ADDRESS, raising=False)
    for system in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", system)
        assert not can_fork()


def test_provisioner_is_an_entry_point():
    found = importlib.metadata.entry_points(group="jupyter_client.kernel_provisioners", name=warm.PROVISIONER)
    assert {e.value for e in found} == {f"{MODULE}:forked_kernel"}


@needs_fork
def test_sockets_are_private(bench):
    folder = Path(bench.env[ADDRESS])
    assert folder.stat().st_mode & 0o777 == 0o700 and folder.stat().st_uid == os.getuid()
    assert {p.name for p in folder.iterdir()} == set(LAYERS)


@needs_fork
@pytest.mark.parametrize("depth", [1, 40])
def test_a_long_temporary_folder_is_no_trouble(tmp_path, monkeypatch, depth):
    import tempfile
    deep = tmp_path.joinpath(*["deep-folder"] * depth)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with warm_server(environment(tmp_path), layers={"light": ("json",)}, command="warm_step") as env:
        folder = env[ADDRESS]
        assert all(len(os.fsencode(p)) < 107 for p in Path(folder).iterdir()) and len(list(Path(folder).iterdir())) == 1
    assert not Path(folder).exists()


@needs_fork
def test_a_layer_that_must_not_be_forked_withdraws(tmp_path):
    starts = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    (tmp_path / "threaded.py").write_text(starts)
    log = tmp_path / "server.log"
    with warm_server(environment(tmp_path), layers={"light": ("threaded",)}, log=str(log)) as env:
        done = version(env)
        assert done.returncode == 0 and done.stdout.strip()
        assert wait_until(lambda: "a library has started a thread" in log.read_text(), 5)


# How a build ends

LAUNCH = """
import json, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell that runs tests in the background ignores it
from peace_nb.pipeline.warm import warm_server
given = json.loads(sys.argv[1])
with warm_server(given["env"], layers=given["layers"], command="warm_step", log=given["log"]) as env:
    running = [subprocess.Popen(cmd, env=env, stderr=subprocess.PIPE, text=True) for cmd in given["commands"]]
    for p in running: print(p.communicate()[1], p.returncode, flush=True)
"""
LONG = """
import os, subprocess, time
from pathlib import Path
subprocess.Popen(["sleep", "300"], start_new_session=True)   # a process that kernels of the old way would leave, too
Path(r"{ready}").write_text(str(os.getpid()))
while True: time.sleep(1)
"""


class Launch:
    "A small build: a launcher, its server, a step in each of the two layers, their kernels and what these started."
    def __init__(self, folder: Path):
        self.env, self.ready = environment(folder), [folder / f"{layer}.ready" for layer in SMALL]
        commands = []
        for layer, ready in zip(SMALL, self.ready):
            nb = notebook(folder / f"{layer}.ipynb", LONG.format(ready=ready))
            commands.append([sys.executable, "-m", MODULE, layer, str(nb), str(folder / f"{layer}.out.ipynb"), "1"])
        given = {"env": self.env, "layers": SMALL, "log": str(folder / "server.log"), "commands": commands}
        self.process = subprocess.Popen([sys.executable, "-c", LAUNCH, json.dumps(given)], env=self.env, cwd=ROOT,
                                        stdout=subprocess.PIPE, text=True)
        assert wait_until(lambda: all(r.exists() and r.read_text() for r in self.ready), 90)

    def children(self): return psutil.Process(self.process.pid).children()
    def clients(self): return [c for c in self.children() if MODULE in c.cmdline()]
    def server(self): return next(c for c in self.children() if "serve()" in " ".join(c.cmdline()))
    def kernels(self): return [psutil.Process(int(r.read_text())) for r in self.ready]
    def gone(self, but=()) -> bool: return not [p for p in marked(self.env) if p.pid not in but]


@pytest.fixture
def launch(tmp_path):
    build = Launch(tmp_path)
    yield build
    build.process.kill()
    wait_until(build.gone, 2)
    for p in marked(build.env):
        with contextlib.suppress(psutil.Error): p.kill()
    build.process.wait()


@needs_fork
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_stopped_build_leaves_nothing_running(launch, signum):
    # launcher, two layers, and in each a client, a step, a kernel and what the kernel started
    assert len(marked(launch.env)) == 11
    launch.process.send_signal(signum)
    assert wait_until(launch.gone, 1), [p.cmdline()[:6] for p in marked(launch.env)]


@needs_fork
def test_a_killed_server_takes_its_steps_along_and_is_reported(launch):
    launch.server().kill()
    assert wait_until(lambda: launch.gone(but=[launch.process.pid]), 1)
    said = launch.process.communicate(timeout=10)[0]
    assert said.count("the warm process of this build ended while the step ran.\n 1\n") == 2


@needs_fork
def test_a_killed_client_ends_its_step_alone(launch):
    first, second = launch.kernels()
    launch.clients()[0].kill()
    assert wait_until(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE, 1)
    assert wait_until(lambda: len(marked(launch.env)) == 7, 1)   # client, step, kernel and the kernel's child are gone
    assert second.is_running()


@needs_fork
def test_a_step_that_is_killed_says_so(bench):
    kill = "import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(60)"
    nb = notebook(bench.folder / "kill.ipynb", kill)
    done = bench.run(nb, ok=False)
    assert done.returncode == 128 + signal.SIGKILL and "killed by signal 9; is there enough memory?" in done.stderr


@needs_fork
def test_after_the_server_is_gone_steps_start_the_ordinary_way(tmp_path):
    with warm_server(environment(tmp_path), layers={"light": ("json",)}, log=str(tmp_path / "log")) as env:
        server = next(p for p in marked(env) if env[ADDRESS] in " ".join(p.cmdline()))
        server.kill()
        server.wait()
        done = version(env)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip()


@needs_fork
def test_a_step_that_does_not_end_is_killed():
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    child.stdout.readline()
    jobs = Jobs()
    jobs.end(child.pid)
    time.sleep(0.3)
    jobs.kill_overdue()
    assert child.poll() is None
    time.sleep(0.4)
    jobs.kill_overdue()
    assert child.wait(1) == -signal.SIGKILL


# How far a build has come

def test_progress_of_two_cores_on_a_slower_machine():
    import io
    kept = {f"pretrain_M_seed{k}": 100.0 for k in range(6)} | {"table-1": 10.0}
    now, log = [0.0], io.StringIO()
    progress = warm.BuildProgress(list(kept), kept, out=log, clock=lambda: now[0])
    def say(line): warm.show(progress, line)
    say("12:00:00  pretrain_M_seed0 ...")
    say("12:00:00  pretrain_M_seed1 ...")
    now[0] = 200.0
    say("12:03:20  pretrain_M_seed0: 200 s, 500 MB")
    say("12:03:20  pretrain_M_seed1: 200 s, 500 MB")
    ratio = (400 + 610 / 20) / (200 + 610 / 20)
    left = 410 * ratio / 2
    assert progress.line() == f"2 of 7 steps; about {warm.in_words(left)} left"
    assert log.getvalue().splitlines()[-1].endswith(f"({progress.line()})")
    say("12:03:20  pretrain_M_seed2 ...")
    now[0] = 300.0
    assert progress.line() == f"2 of 7 steps; about {warm.in_words((410 * ratio - 100) / 2)} left; now pretrain_M_seed2"


def test_progress_counts_steps_that_were_done_before():
    import io
    kept = {"a": 10.0, "b": 20.0, "c": 30.0}
    progress = warm.BuildProgress(["a", "b", "c"], kept, done=("a", "b"), out=io.StringIO(), clock=lambda: 0.0)
    assert progress.line() == "2 of 3 steps; about 30 s left"
    warm.show(progress, "12:00:00  b ...")   # it is made again
    assert progress.line() == "1 of 3 steps; about 30 s left; now b"
    for step in "bc":
        warm.show(progress, f"12:00:00  {step} ...")
        warm.show(progress, f"12:00:09  {step}: 9 s, 1 MB")
    assert progress.line() == "3 of 3 steps"
