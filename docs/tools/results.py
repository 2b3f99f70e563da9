"""The studies' results: tables and figures of the reference runs, as pages."""
import base64
import csv
import html
import json
import re
from pathlib import Path

WHOLE, MOST = 40, 120   # rows: longer tables are folded, and cut where they are very long


def runs_of(root: Path) -> list[dict]:
    "Reference runs: folder, profile, study, and what is known of them. The default profile first."
    found = []
    for versions in sorted((root / "paper" / "reference").rglob("versions.json")):
        about = json.loads(versions.read_text(encoding="utf-8"))
        parts = versions.parent.relative_to(root / "paper" / "reference").parts
        study = next((p for p in parts if p != about["profile"]), "peace")
        found.append({"folder": versions.parent, "profile": about["profile"], "study": study, "page": f"results/{study}-{about['profile']}", "about": about})
    return sorted(found, key=lambda r: (r["study"], r["profile"] != "demo", r["profile"]))


def copies(root: Path) -> dict[tuple[str, str], Path]:
    "(study, notebook) → its executed copy, of the first run that kept one."
    found = {}
    for run in reversed(runs_of(root)):
        for path in (run["folder"] / "notebooks").glob("*.ipynb"): found[run["study"], path.stem] = path
    return found


def rounded(cell: str) -> str:
    "A number with three decimals at most; any other text as it is."
    return f"{float(cell):.3f}" if re.fullmatch(r"-?\d+\.\d{4,}", cell) else cell


def html_table(path: Path, place: str) -> str:
    "A CSV file as a table with its name below; long ones folded."
    with open(path, encoding="utf-8", newline="") as f: head, *rows = list(csv.reader(f))
    def field(cell, tag): return f"<{tag}{'' if len(cell) > 26 else ' class=short'}>{html.escape(rounded(cell))}</{tag}>"
    def line(cells, tag): return "<tr>" + "".join(field(cell, tag) for cell in cells) + "</tr>"
    body = "\n".join(line(row, "td") for row in rows[:MOST])
    cut = f": the first {MOST} of {len(rows)} rows are shown." if len(rows) > MOST else ""
    grid = f'<div class="result-table"><table><thead>{line(head, "th")}</thead><tbody>\n{body}\n</tbody></table></div>'
    if len(rows) > WHOLE: grid = f"<details><summary>{path.stem.replace('_', ' ')}: {len(rows)} rows</summary>{grid}</details>"
    return f"```{{raw}} html\n{grid}\n```\n\n{{.result-file}}\n[`{path.name}`](/{place}){cut}\n"


def note_of(folder: Path, number: str) -> str:
    path = folder / f"table_{number}_note.csv"
    if not path.exists(): return ""
    with open(path, encoding="utf-8", newline="") as f: return next(iter(list(csv.reader(f))[1:]), [""])[0]


def numbered(path: Path) -> tuple[str, str] | None:
    m = re.match(r"(table|figure)_(\d+)_", path.name)
    return (m[1].capitalize(), m[2]) if m else None


def pictures(notebook: Path) -> list[bytes]:
    "The pictures an executed notebook shows."
    nb = json.loads(notebook.read_text(encoding="utf-8"))
    found = [o["data"]["image/png"] for c in nb["cells"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    return [base64.b64decode(p if isinstance(p, str) else "".join(p)) for p in found]


def title_of(notebook: dict) -> tuple[str, str]:
    "Title and subtitle of a notebook: its first heading and the quotation below it."
    for cell in notebook["cells"]:
        if cell["cell_type"] != "markdown": continue
        text = "".join(cell["source"])
        if m := re.match(r"#\s+(.+)", text):
            sub = re.search(r"^>\s*(.+)", text, re.M)
            return m[1].strip(), sub[1].strip() if sub else ""
    return "", ""


def places_of(root: Path, study: str) -> list[dict]:
    "The tables and figures of a study, from the table of steps."
    from peace_nb.pipeline.steps import places
    return places(study)


def made_in_order(study: str) -> dict[str, int]:
    "Names of the files a study's steps make, with their place among the outputs of their step: the main table comes first."
    from peace_nb.pipeline.steps import STEPS
    return {Path(output).name: i for step in STEPS if step.study == study for i, output in enumerate(step.outputs) if isinstance(output, str)}


def shows(text: str) -> str: return text.replace("](../", "](/").replace("|", "\\|")


def run_page(root: Path, out, run: dict) -> str:
    "A page with all tables and figures of one reference run."
    about, study = run["about"], run["study"]
    known = {p["name"]: p for p in places_of(root, study)}
    in_order = made_in_order(study)
    groups: dict[tuple, list] = {}
    for path in sorted(run["folder"].glob("*.csv")):
        if numbered(path) and not path.stem.endswith("_note"): groups.setdefault(numbered(path), []).append(path)
    for files in groups.values(): files.sort(key=lambda path: (path.stem.endswith("_full"), in_order.get(path.name, 99)))
    for path in sorted((run["folder"] / "notebooks").glob("figure_*.ipynb")):
        number = str(int(re.match(r"figure_(\d+)", path.stem)[1]))
        if shown := pictures(path): groups.setdefault(("Figure", number), []).append((path, shown[-1]))
    parts = [f"# {study.upper() if study == 'peace' else study}: reference run `{run['profile']}`", "",
             f"{about.get('note', '')} Made from commit `{about.get('commit', '')[:10]}` with "
             + ", ".join(f"{k} {v}" for k, v in about.get("environment", {}).items() if k in ("python", "torch", "numpy")) + ".", ""]
    if "simulated" in about.get("note", ""):
        parts += ["```{admonition} Simulated patients\n:class: warning\nThese numbers say how the methods behave on a model of the world. They are no evidence about patients.\n```", ""]
    for kind, number in sorted(groups, key=lambda g: (g[0] == "Figure", int(g[1]))):
        place = known.get(f"{kind} {number}")
        title = title_of(json.loads(Path(place["notebook"]).read_text(encoding="utf-8")))[0] if place else f"{kind} {number}"
        parts += [f"({study}-{run['profile']}-{kind.lower()}-{number})=", f"## {title}", ""]
        if place:
            notebook = Path(place["notebook"]).relative_to(root / "nbs").as_posix()
            parts += [f"{shows(place['shows'])[:1].upper()}{shows(place['shows'])[1:]}. [The notebook](/nbs/{notebook})", ""]
        note = note_of(run["folder"], number) if kind == "Table" else ""
        for item in groups[kind, number]:
            if isinstance(item, Path):
                place = item.relative_to(root).as_posix()
                out.write(place, item.read_bytes())
                parts.append(html_table(item, place))
            else:
                name = f"results/{study}-{run['profile']}/{item[0].stem}.png"
                out.write(name, item[1])
                parts += [f"```{{figure}} /{name}\n:alt: {kind} {number}\n```", ""]
        if note: parts += [f"```{{raw}} html\n<p class=\"result-note\">{html.escape(note)}</p>\n```", ""]
    return "\n".join(parts)


def stage_results(root: Path, out) -> list[dict]:
    "A page per reference run, and their index."
    runs = runs_of(root)
    for run in runs: out.write(f"{run['page']}.md", run_page(root, out, run))
    return runs


def runs_list(runs: list[dict]) -> str:
    lines = ["| study | profile | made on |", "|---|---|---|"]
    lines += [f"| {r['study']} | [`{r['profile']}`](/{r['page']}.md) | {r['about'].get('note', '')} |" for r in runs]
    return "\n".join(lines) + "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(f"{r['study']}, {r['profile']} </{r['page']}>" for r in runs) + "\n```\n"


def places_table(root: Path, runs: list[dict]) -> str:
    "Where each table and figure comes from, what it shows, and where its numbers are."
    from peace_nb.pipeline.steps import studies
    parts = []
    for study in studies():
        rows = ["| notebook | what it shows | numbers |", "|---|---|---|"]
        for place in places_of(root, study):
            kind, number = place["name"].split()
            has = [r for r in runs if r["study"] == study and ((kind == "Table" and list(r["folder"].glob(f"table_{number}_*.csv"))) or (kind == "Figure" and list(r["folder"].glob(f"figure_{number}_*.csv"))))]
            numbers = ", ".join(f"[{r['profile']}](#{study}-{r['profile']}-{kind.lower()}-{number})" for r in has)
            notebook = Path(place["notebook"]).relative_to(root / "nbs").as_posix()
            rows.append(f"| [](/nbs/{notebook}) | {shows(place['shows'])} | {numbers} |")
        parts.append(f"## Study: {study}\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


def profiles_table() -> str:
    "The profiles of `settings.ini`: data, methods, seeds."
    import configparser
    from peace_nb.settings import data_kind, load_profile, project_root
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(project_root() / "settings.ini", encoding="utf-8")
    rows = ["| profile | data | minutes | methods | seeds |", "|---|---|---|---|---|"]
    for name in ini.sections():
        p = load_profile(name)
        more = f", some methods {', '.join(sorted({v.split(':')[1] for v in p.seeds_of}))}" if p.seeds_of else ""
        rows.append(f"| `{name}` | {data_kind(p)} | {p.expected_minutes} | {len(p.methods)} | {len(p.seeds)}{more} |")
    return "\n".join(rows)
