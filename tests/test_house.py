"""The house: imports point one way, no room is too large, one notebook a module, one table of steps."""
import ast
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from conftest import ROOT
from peace_nb.pipeline.steps import STEPS, sources, step_of

# From below to above: a room may import from rooms above it in this list, never the other way.
FLOORS = (
    "settings files", "processes", "labels signals", "ages", "datasets models", "cohorts", "clinical", "knowledge simulation", "store",
    "methods", "evaluation", "training rhythms", "pipeline", "prepare", "cli"
)
HEIGHT = {room: n for n, floor in enumerate(FLOORS) for room in floor.split()}
APART = {"lessons"}   # for teaching alone: nothing may import it
LARGEST = 0.20        # of all lines


def modules(package: Path) -> dict[str, Path]:
    "Modules by their name below the package."
    found = {".".join(p.relative_to(package).with_suffix("").parts): p for p in package.rglob("*.py")}
    return {name: p for name, p in found.items() if not name.split(".")[-1].startswith("_")}


def imports(package: Path) -> dict[str, set[str]]:
    "What each module imports from this package, inside functions too."
    known, graph = modules(package), defaultdict(set)
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom): continue
            above = name.split(".")[:-node.level] if node.level else []
            if not node.level and not (node.module or "").startswith(package.name): continue
            module = ".".join(
                [
                    *above,
                    *(
                        node.module.removeprefix(f"{package.name}.").removeprefix(package.name).split(".")
                        if node.module
                        else []
                    ),
                ]
            ).strip(".")
            graph[name] |= (
                {module}
                if module in known
                else {m for a in node.names if (m := f"{module}.{a.name}".strip(".")) in known}
            )
    return graph


def room(module: str) -> str: return module.split(".")[0]


def upwards(graph: dict) -> list[str]:
    "Imports that do not point down, and rooms that stand on no floor."
    found = [f"{m} stands on no floor" for m in graph if room(m) not in HEIGHT and room(m) not in APART]
    for m, others in graph.items():
        for o in others:
            if room(o) in APART:
                found.append(f"{m} imports {o}, which is for lessons")
            elif room(m) != room(o) and room(m) not in APART and HEIGHT.get(room(m), -1) <= HEIGHT.get(room(o), 99):
                found.append(f"{m} imports {o} upwards")
    return sorted(found)


def circles(graph: dict) -> list[str]:
    "Modules that import themselves through others."
    def reached(start):
        todo, seen = list(graph.get(start, ())), set()
        while todo:
            m = todo.pop()
            if m not in seen:
                seen.add(m)
                todo += graph.get(m, ())
        return seen
    return sorted(m for m in list(graph) if m in reached(m))


def test_imports_point_one_way_and_in_no_circle():
    graph = imports(ROOT / "peace_nb")
    assert len(graph) > 60 and upwards(graph) == [] and circles(graph) == []


def test_the_walk_sees_what_is_wrong(tmp_path):
    package = tmp_path / "peace_nb"
    for place, code in {
        "settings.py": "from .store.store import open\n",
        "store/store.py": "def f():\n    from peace_nb.store.writer import w\n",
        "store/writer.py": "from . import store\n", "attic/box.py": "from ..settings import x\n",
        "cli.py": "from .lessons import invent\n", "lessons.py": ""
    }.items():
        (package / place).parent.mkdir(parents=True, exist_ok=True)
        (package / place).write_text(code)
    graph = imports(package)
    assert circles(graph) == ["store.store", "store.writer"]
    said = upwards(graph)
    assert (
        "settings imports store.store upwards" in said
        and "attic.box stands on no floor" in said
        and "cli imports lessons, which is for lessons" in said
        and len(said) == 4
    )


def test_no_room_holds_more_than_a_fifth():
    lines = Counter()
    for name, path in modules(ROOT / "peace_nb").items():
        lines[room(name)] += len(path.read_text(encoding="utf-8").splitlines())
    shares = {r: n / lines.total() for r, n in lines.items()}
    assert max(shares.values()) < LARGEST, shares


def exported() -> dict[str, Path]:
    "Module → notebook."
    found = {}
    for p in (ROOT / "nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in p.parts: continue
        for cell in json.loads(p.read_text(encoding="utf-8"))["cells"]:
            if m := re.search(r"#\s*\|\s*default_exp\s+(\S+)", "".join(cell["source"])):
                assert m[1] not in found, f"{m[1]} comes from two notebooks"
                found[m[1]] = p
    return found


def test_one_notebook_a_module_in_the_folder_of_its_room():
    found = exported()
    assert set(found) == set(modules(ROOT / "peace_nb"))
    for module, notebook in found.items():
        assert notebook.parent == (ROOT / "nbs" / room(module) if "." in module else ROOT / "nbs"), (
            f"{notebook} is not in the room of {module}"
        )


def test_notebooks_are_numbered_from_01_without_gaps():
    for folder in {p.parent for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}:
        names = sorted(p.name for p in folder.glob("*.ipynb") if p.name != "index.ipynb")
        numbers = [int(m[1]) for n in names if (m := re.match(r"(\d\d)_[a-z]", n))]
        assert numbers == list(range(1, len(numbers) + 1)), f"{folder}: {names}"
        odd = [n for n in names if not re.match(r"\d\d_[a-z0-9_]+\.ipynb$|(table|figure)_\d\d_[a-z0-9_]+\.ipynb$", n)]
        assert not odd, odd


def test_no_private_name_crosses_a_wall():
    for name, path in modules(ROOT / "peace_nb").items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("peace_nb")):
                private = [a.name for a in node.names if a.name.startswith("_") and a.name != "__version__"]
                assert not private, f"{name} imports {private} from {node.module}"


@pytest.mark.parametrize(
    "room_name, stale",
    [
        ("datasets", set()),
        ("simulation", {"cohort-adult", "cohort-child", "cohort-ptbxl", "cohort-extra", "sim2real-train"})
    ],
)
def test_a_changed_comment_makes_stale_what_stands_on_it(room_name, stale):
    "By name: nothing stands on the downloads; the simulated cohorts and Table 3's networks stand on the simulation, the tables of results do not."
    found = {s.name for s in STEPS if any(p.parent.name == room_name for p in sources(s))}
    assert stale <= found and not found & {
        "table-2", "table-4", "table-5", "table-7", "pretrain", "transfer", "figure-2", "figure-3"
    }
    if room_name == "datasets": assert found == set()


def test_light_steps_stand_on_no_network():
    for s in STEPS:
        if s.kernel == "light": assert not any(p.parent.name == "models" for p in sources(s)), s.name
    assert any(p.parent.name == "models" for p in sources(step_of("pretrain")))


IMPORTS = """
import ast, json, sys
from peace_nb.pipeline.steps import STEPS, where
for step in (s for s in STEPS if s.kernel == "light"):
    for cell in json.loads(where(step).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code": continue
        for node in ast.parse("".join(cell["source"])).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)): exec(compile(ast.Module([node], []), step.name, "exec"))
    heavy = {"torch", "transformers"} & set(sys.modules)
    assert not heavy, f"{step.name} imports {heavy}"
"""


def test_a_step_that_draws_imports_no_torch():
    "What the light steps import, all of it in one fresh process."
    ran = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
