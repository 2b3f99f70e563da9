"""Lay out the sources of the site: pages, notebooks, the API reference and the results, as files that Sphinx reads."""
import csv
import json
import re
import shutil
from pathlib import Path

from . import api, results
from .results import title_of

ROOMS_MAY_BE_MISSING = False   # True: a room of rooms.csv without a folder is left out instead of refused


class Staged:
    "Files below the folder that Sphinx reads: written only where they changed, so that a second build is fast; what was not written again goes."
    def __init__(self, folder: Path): self.folder, self.kept = folder, set()

    def write(self, name: str, content: str | bytes):
        path = self.folder / name
        content = content.encode("utf-8") if isinstance(content, str) else content
        self.kept.add(path)
        if path.exists() and path.read_bytes() == content: return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def sweep(self):
        for path in [p for p in self.folder.rglob("*") if p.is_file() and p not in self.kept]: path.unlink()


def stem_of(path: Path) -> str:
    "A notebook's name without its number: `06_curriculum.ipynb` → `curriculum`."
    return re.sub(r"^\d+_", "", path.stem)


def rooms_of(root: Path, listed: list[dict]) -> list[dict]:
    "Rooms in the order of rooms.csv, then others by name. Raises `ValueError` for a listed room without a folder."
    nbs = root / "nbs"
    found = {p.parent.relative_to(nbs).as_posix() for p in nbs.rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in p.relative_to(nbs).parts)}
    missing = [r["room"] for r in listed if r["room"] not in found]
    if missing and not ROOMS_MAY_BE_MISSING: raise ValueError(f"docs/rooms.csv lists the room {missing[0]!r}, but nbs/{missing[0]} holds no notebook.")
    known = {r["room"] for r in listed}
    return [r for r in listed if r["room"] in found] + [{"room": r, "title": r.rpartition("/")[2].replace("_", " ").capitalize(), "holds": ""} for r in sorted(found - known)]


def place(room: dict) -> str:
    "The folder of a room's pages below nbs/."
    return "top" if room["room"] == "." else room["room"]


def notebooks_of(root: Path, room: str) -> list[Path]:
    "A room's notebooks by file name."
    return [p for p in sorted((root / "nbs" / room).glob("*.ipynb")) if p.name != "index.ipynb" and not p.name.startswith((".", "_"))]


def directives(source: str) -> tuple[dict, str]:
    "The `#| name: value` lines at the top of a cell, and the code without them."
    found, lines = {}, source.splitlines(keepends=True)
    while lines and (m := re.match(r"#\s*\|\s*([\w-]+)\s*:?\s*(.*)", lines[0])):
        found[m[1]] = m[2].strip()
        lines.pop(0)
    return found, "".join(lines).lstrip("\n")


def shown_cell(cell: dict) -> dict | None:
    "A cell as the site shows it; None for one that is machinery."
    source = "".join(cell["source"])
    if cell["cell_type"] != "code": return {**cell, "source": source}
    named, code = directives(source)
    if "hide" in named or named.get("include") == "false" or not code.strip(): return None
    tags = [*cell.get("metadata", {}).get("tags", [])]
    if named.get("echo") == "false": tags.append("remove-input")
    if named.get("output") == "false": cell = {**cell, "outputs": []}
    return {**cell, "source": code, "metadata": {"tags": tags} if tags else {}, "execution_count": None}


FOLDER = re.compile(r"\]\((?:\.\./)+paper/reference/?\)")   # a folder is no page: the page of the results stands for it
INDEX = re.compile(r"\]\((?:\.\./)*index\.ipynb\)")


def notebook_page(notebook: dict, note: str) -> str:
    "A notebook as the site shows it, with a note under its title."
    cells = [shown for cell in notebook["cells"] if (shown := shown_cell(cell))]
    for cell in cells:
        if cell["cell_type"] == "markdown": cell["source"] = INDEX.sub("](/index.md)", FOLDER.sub("](/results/index.md)", cell["source"]))
    at = next((i for i, cell in enumerate(cells) if cell["cell_type"] == "markdown"), 0)
    title, sep, rest = cells[at]["source"].partition("\n\n") if cells else ("", "", "")
    if rest.startswith(">") or not title.startswith("#"): head, sep, rest = rest.partition("\n\n"); title = f"{title}\n\n{head}"
    if cells: cells[at]["source"] = f"{title}\n\n{note}\n\n{rest}"
    meta = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": meta, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False)


def note_of(root: Path, path: Path, notebook: dict, modules: dict, copy: dict | None) -> str:
    "What stands under a notebook's title: its module, or where its outputs come from."
    if copy: return (f"```{{note}}\nExecuted in the reference run of profile `{copy.get('profile')}` (step `{copy.get('step')}`, commit `{str(copy.get('commit'))[:10]}`), kept in small. "
                     "The source of this notebook may have changed since.\n```")
    if "studies" in path.parts: return "```{note}\nShown without outputs: what this notebook shows depends on the profile it is run in. `make paper` leaves the executed copy in `paper/build`.\n```"
    module = modules.get(path)
    return f"*Module* [`{module}`](/api/{module}.md){{.module-link}}" if module else ""


def modules_of(root: Path) -> dict[Path, str]:
    "Notebook → the module it makes."
    found = {}
    for path in (root / "nbs").rglob("*.ipynb"):
        m = re.search(r'#\s*\|\s*default_exp\s+([\w.]+)', path.read_text(encoding="utf-8"))
        if m: found[path] = f"peace_nb.{m[1]}"
    return found


def fill(text: str, parts: dict[str, str]) -> str:
    "Put generated parts in place of `<!-- name -->`. Raises `ValueError` for a name that nothing makes."
    def one(m):
        if m[1] not in parts: raise ValueError(f"No part of the site is called {m[1]!r}; there are {', '.join(parts)}.")
        return parts[m[1]]
    return re.sub(r"<!-- ([a-z-]+) -->", one, text)


def notebook_links(text: str, every: dict[str, list], page: str) -> str:
    "Turn {nb}`curriculum` into a link with the notebook's title. Raises `ValueError` where no notebook has that name, or two."
    def one(m):
        room, _, name = m[1].rpartition("/")
        found = [(path, title) for path, title in every.get(name, []) if path.startswith(f"{room}/" if room else "")]
        if len(found) != 1: raise ValueError(f"docs/pages/{page} names the notebook {m[1]!r}, but {len(found) or 'no'} notebooks have that name.")
        return f"[{found[0][1]}](/nbs/{found[0][0]})"
    return re.sub(r"\{nb\}`([\w/]+)`", one, text)


def toctree(entries: list[str], **options) -> str:
    return "```{toctree}\n" + "".join(f":{k}: {v}\n".replace(": \n", ":\n") for k, v in options.items()) + "\n".join(["", *entries]) + "\n```\n"


def stage_notebooks(root: Path, out: Staged, rooms: list[dict], copies: dict) -> dict[str, list]:
    "All notebooks and an index page per room; returns notebooks by name: (path below nbs, title)."
    modules, every = modules_of(root), {}
    for room in rooms:
        lines = []
        for path in notebooks_of(root, room["room"]):
            nb = json.loads(path.read_text(encoding="utf-8"))
            title, sub = title_of(nb)
            if not title: raise ValueError(f"{path.relative_to(root)} has no title: its first text must begin with `# `.")
            below = path.relative_to(root / "nbs")
            kept = copies.get((below.parent.name, path.stem)) if "studies" in below.parts else None
            shown = json.loads(kept.read_text(encoding="utf-8")) if kept else nb
            about = shown["metadata"].get("peace_nb") if kept else None
            out.write(f"nbs/{below.as_posix()}", notebook_page(shown, note_of(root, path, nb, modules, about)))
            every.setdefault(stem_of(path), []).append((below.as_posix(), title))
            lines.append((below, title, sub))
        name = place(room)
        table = ["| notebook | what it is about |", "|---|---|", *(f"| [{t}](/nbs/{b.as_posix()}) | {s.replace('|', chr(92) + '|')} |" for b, t, s in lines)]
        holds = f"{room['holds'][:1].upper()}{room['holds'][1:]}." if room["holds"] else ""
        out.write(f"nbs/{name}/index.md", f"# {room['title']}\n\n{holds}\n\n" + "\n".join(table) + "\n\n" + toctree([f"/nbs/{b.as_posix()}" for b, _, _ in lines], hidden=""))
    return every


def stage(root: Path, folder: Path) -> list[str]:
    "Write all sources of the site below `folder`; returns what is wrong, a sentence each."
    from peace_nb.pipeline import kept
    out = Staged(folder)
    if kept.any_kept(root):
        if wrong := kept.check_outputs(root): return wrong
    else: print("site: no library notebook keeps outputs; `make outputs` makes them.")
    try:
        with open(root / "docs" / "rooms.csv", encoding="utf-8", newline="") as f: rooms = rooms_of(root, list(csv.DictReader(f)))
        every = stage_notebooks(root, out, rooms, results.copies(root))
        graph = api.rooms_table(root, rooms)
        names = api.stage_api(root, out, modules_of(root))
        runs = results.stage_results(root, out)
        parts = {"rooms": graph, "places": results.places_table(root, runs), "profiles": results.profiles_table(), "runs": results.runs_list(runs),
                 "room-list": "\n".join(f"| [{r['title']}](/nbs/{place(r)}/index.md) | {r['holds']} |" for r in rooms),
                 "room-tree": toctree([f"/nbs/{place(r)}/index" for r in rooms], hidden="")}
        for page in sorted((root / "docs" / "pages").rglob("*.md")):
            name = page.relative_to(root / "docs" / "pages").as_posix()
            out.write(name, notebook_links(fill(page.read_text(encoding="utf-8"), parts), every, name))
    except ValueError as error: return [str(error)]
    for path in [*(root / "docs" / "images").glob("*.png")]: out.write(f"images/{path.name}", path.read_bytes())
    linked = [root / "settings.ini"] + [f for kind in ("*.csv", "*.yaml", "predictions/*.csv") for f in (root / "paper").glob(kind)]
    for path in linked:   # files that notebooks link to
        if path.exists(): out.write(path.relative_to(root).as_posix(), path.read_bytes())
    out.sweep()
    for empty in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        if not any(empty.iterdir()): shutil.rmtree(empty)
    return []
