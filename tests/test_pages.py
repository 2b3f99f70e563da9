"report.html and paper.pdf: what they open on, what is folded, what is escaped, where links lead, what may be missing."
import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import nbformat
import pandas as pd
import pytest
import typst

from peace_nb.pipeline.manuscript import LONG, build_manuscript, build_report, chapter_inputs, notebook_pages
from peace_nb.pipeline.steps import jobs, places, printed, step_names, study_of
from peace_nb.settings import PeaceError

ROOT = Path(__file__).resolve().parents[1]
PARTS = ["reference", "result", "claims", "figures", "tables", "numbers", "notebooks", "run"]
STRANGE = "<script>alert('P00073 & co')</script>"   # the name of a record


def a_house(folder: Path, profile: str, tables: str) -> Path:
    "A checkout in small, with a build of `profile` made of the kept tables of `tables`; returns the build."
    (folder / "nbs").mkdir()
    shutil.copytree(ROOT / "nbs" / "studies", folder / "nbs" / "studies")
    shutil.copytree(ROOT / "paper", folder / "paper", ignore=lambda at, names: [n for n in names if n == "build"])
    shutil.copy(ROOT / "settings.ini", folder)
    kept, build = folder / "paper" / "reference" / tables / "peace", folder / "paper" / "build" / profile / "peace"
    for name in ("tables", "measured", "figures", "notebooks", "provenance"): (build / name).mkdir(parents=True)
    for table in (ROOT / "tests" / "data" / "table_16").glob("*.csv"): shutil.copy(table, build / "tables")
    # a reference that has Table 16 itself has the last word
    for table in kept.glob("*.csv"): shutil.copy(table, build / "tables")
    return build


def with_figures(build: Path, names):
    "The same small picture under every name."
    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    fig, ax = plt.subplots(figsize=(6, 4))
    ax.plot([0, 1], [0, 1])
    for kind in ("png", "pdf"): fig.savefig(build / f"drawn.{kind}", dpi=200)
    plt.close(fig)
    for name in names: shutil.copy(build / f"drawn{Path(name).suffix}", build / name)


def with_records(build: Path, profile: str):
    "A record of every step, as of the kept reference, and an executed notebook with its page."
    kept = build.parents[2] / "reference" / profile / "peace" / "versions.json"
    versions = json.loads(kept.read_text(encoding="utf-8"))
    for job in jobs(profile, "peace"):
        settings = {k: v for k, v in versions["settings"].items() if k in job.step.settings}
        entry = {"step": job.name, "started": "2026-01-01T00:00:00+00:00", "seconds": 61.0, "peak_memory_mb": 512,
                 "threads": 1, "settings": settings, "parameters": {"profile": profile}}
        (build / "provenance" / f"{job.name}.json").write_text(json.dumps(entry), encoding="utf-8")
        for kind in ("ipynb", "html"): (build / "notebooks" / f"{job.name}.{kind}").write_text("{}", encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    "A build of demo, of the kept tables; a record with a strange name; its report and its manuscript."
    with pytest.MonkeyPatch.context() as patch:
        house = tmp_path_factory.mktemp("house")
        patch.chdir(house)
        build = a_house(house, "demo", "demo")
        with_figures(build, [f for f in printed("demo") if f.startswith("figures/")])
        with_records(build, "demo")
        children = build / "tables" / "table_3_children.csv"
        rows = pd.read_csv(children, dtype=str)
        rows.loc[0, "record"] = STRANGE
        rows.rename(columns={"stated": "stated <i>"}).to_csv(children, index=False)
        build_manuscript("demo")
        build_report("demo")
        yield build


class Page(HTMLParser):
    "What a page holds: parts in order, tables with rows and folds, pictures with the link around them, links, scripts."
    def __init__(self, text):
        super().__init__()
        self.parts, self.tables, self.pictures, self.links = [], [], [], []
        self.scripts, self.folds = 0, 0
        self.open, self.around = None, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "section": self.parts.append(attrs["id"])
        if tag == "details": self.folds += 1
        if tag == "script": self.scripts += 1
        if tag == "div" and "aria-label" in attrs: self.open = attrs
        if tag == "table":
            self.tables.append({"name": self.open["aria-label"], "keyboard": self.open.get("tabindex"), "rows": -1,
                                "folded": self.folds > 0, "part": self.parts[-1]})
        if tag == "tr": self.tables[-1]["rows"] += 1   # the head is none
        if tag == "a":
            self.around = attrs["href"]
            self.links.append(attrs["href"])
        if tag == "img": self.pictures.append((attrs["src"], self.around, attrs["alt"]))
        if tag == "link" or "onclick" in attrs: self.scripts += 1

    def handle_endtag(self, tag):
        if tag == "details": self.folds -= 1
        if tag == "a": self.around = None


@pytest.fixture(scope="module")
def page(demo): return Page((demo / "report.html").read_text(encoding="utf-8"))


def test_the_report_opens_on_what_a_reviewer_asks_first(demo, page):
    text = (demo / "report.html").read_text(encoding="utf-8")
    assert page.parts == PARTS
    order = ["<h1>PEACE, regenerated</h1>", 'class="note">Data: simulated cohorts.', 'class="verdict ',
             'aria-label="table_2_transfer"', "agrees <b>7</b>", "disagrees <b>1</b>", "not distinguishable <b>22</b>",
             'class="gallery"', 'id="table-1"', 'id="run"']
    found = [text.index(part) for part in order]
    assert found == sorted(found), "out of order"
    assert page.tables[0]["name"] == "table_2_transfer" and not page.tables[0]["folded"]
    assert page.tables[1]["name"] == "table_7_claims" and page.tables[1]["folded"]
    kept = pd.read_csv(ROOT / "paper" / "reference" / "demo" / "peace" / "table_7_claims.csv")
    assert page.tables[1]["rows"] == len(kept) >= 36


def test_tables_stand_by_number_with_caption_and_notebook(demo):
    text = html.unescape((demo / "report.html").read_text(encoding="utf-8"))
    made = {p for f in printed("demo") if (p := re.match(r"(?:tables|measured)/table_(\d+)_", f))}
    numbers = sorted({int(m[1]) for m in made})
    assert [int(n) for n in re.findall(r'<h3 id="table-(\d+)">', text)] == numbers
    for place in places():
        if place["kind"] == "Table" and place["number"] in numbers:
            part = text.split(f'<h3 id="table-{place["number"]}">')[1].split("<h3")[0]
            assert f"notebooks/{place['step']}.html" in part, place["name"]
            assert place["shows"].split("(")[0].strip()[1:30] in part, place["name"]


def test_long_tables_are_folded_and_short_ones_are_not(page):
    own = [t for t in page.tables if t["part"] in ("tables", "numbers")]
    assert {t["name"] for t in own} >= {"table_2_full", "table_1_labels", "table_8_filter", "figure_3_labels"}
    for t in own:
        long = t["rows"] > LONG or t["name"].endswith(("_full", "_labels")) or t["part"] == "numbers"
        assert t["folded"] == long, (t["name"], t["rows"])
    assert max(t["rows"] for t in page.tables) <= 200, "a table of thousands of rows belongs into its file"
    assert all(t["keyboard"] == "0" for t in page.tables), "a wide table must scroll by keyboard"


def test_cells_are_text_and_nothing_comes_from_a_network(demo, page):
    text = (demo / "report.html").read_text(encoding="utf-8")
    assert page.scripts == 0 and "&lt;script&gt;alert(&#x27;P00073 &amp; co&#x27;)" in text and "<i>" not in text
    assert [link for link in page.links if "://" in link] == [] and "url(" not in text and "@import" not in text
    assert '<meta name="viewport"' in text, "a phone would show the page tiny"


def test_every_thumbnail_leads_to_its_picture_and_every_link_somewhere(demo, page):
    pictures = [f for f in printed("demo") if f.endswith(".png")]
    assert sorted(link for _, link, _ in page.pictures) == sorted(pictures) and len(pictures) >= 10
    for source, link, alt in page.pictures:
        assert source.startswith("data:image/png;base64,") and (demo / link).is_file() and alt.startswith("Figure")
        assert len(source) < (demo / link).stat().st_size * 4, "a thumbnail is small"
    ids = set(re.findall(r' id="([^"]+)"', (demo / "report.html").read_text(encoding="utf-8")))
    for link in page.links:
        assert link[1:] in ids if link.startswith("#") else (demo / link).is_file(), link
    assert {f"notebooks/{name}.html" for name in step_names("demo", "peace")} <= set(page.links)
    assert page.pictures[0][1] == study_of("peace").figure, "the main figure comes first"


def test_a_missing_file_is_one_sentence(demo, monkeypatch):
    monkeypatch.chdir(demo.parents[3])
    lost = demo / "tables" / "table_8_filter.csv"
    kept = lost.read_bytes()
    lost.unlink()
    try:
        with pytest.raises(PeaceError, match=r"lacks tables/table_8_filter.csv: build the paper first\."):
            build_report("demo")
    finally: lost.write_bytes(kept)


def test_an_executed_notebook_names_no_folder_of_the_machine(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("", encoding="utf-8")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    cell = nbformat.v4.new_code_cell("path", outputs=[
        nbformat.v4.new_output("execute_result", data={"text/plain": f"PosixPath('{tmp_path}/paper/x.csv')"}),
        nbformat.v4.new_output("stream", name="stdout", text="/elsewhere/checkout/paper/y.csv\n")])
    executed = {"papermill": {"input_path": "/elsewhere/checkout/nbs/studies/peace/a.ipynb"}}
    ran = nbformat.v4.new_notebook(cells=[cell], metadata=executed)
    nbformat.write(ran, tmp_path / "notebooks" / "a.ipynb")
    shown = notebook_pages(tmp_path, ["a"])[0].read_text(encoding="utf-8")
    assert "paper/x.csv" in shown and "paper/y.csv" in shown and "../report.html" in shown
    assert str(tmp_path) not in shown and "elsewhere" not in shown


def asked(build: Path, selector: str, **more):
    "What Typst finds in the chapter of a build."
    root, inputs = build.parents[2], chapter_inputs(build.parent.name, "peace")
    chapter = str(root / "chapters" / "peace.typ")
    return json.loads(typst.query(chapter, selector, root=str(root), sys_inputs=inputs, **more))


def words(content) -> str:
    "The text of a piece of Typst content."
    return content.get("text", "") if "text" in content else "".join(words(c) for c in content.get("children", []))


def test_the_first_two_pages_hold_a_figure_and_the_short_table(demo, monkeypatch):
    monkeypatch.chdir(demo.parents[3])
    placed = asked(demo, "<placed>", field="value")
    early = [(p["kind"], p["number"]) for p in placed if p["page"] <= 2]
    assert ("Table", "2") in early and ("Figure", "1") in early
    numbers = [(p["kind"], p["number"]) for p in placed]
    assert len(numbers) == len(set(numbers)), "a number twice"
    made = [re.match(r"(?:figures/(figure)|tables/(table))_(\d+)_", f) for f in printed("demo")]
    own = {((m[1] or m[2]).capitalize(), m[3]) for m in made if m}
    assert {(kind, re.sub(r"\D", "", n)) for kind, n in numbers} >= own, "a table or figure has no place in the chapter"


def test_appendices_are_marked_as_such(demo, monkeypatch):
    monkeypatch.chdir(demo.parents[3])
    headings = [(words(h["supplement"]), words(h["body"])) for h in asked(demo, "heading")]
    kinds = [kind for kind, _ in headings]
    assert kinds == sorted(kinds, reverse=True) and set(kinds) == {"Section", "Appendix"}, "the text comes first"
    appendices = [body for kind, body in headings if kind == "Appendix"]
    assert {"Transfer in full", "Statistics", "Leads", "Claims in full"} <= set(appendices)
    assert headings[kinds.index("Appendix") - 1][1] == "How these numbers came about"


def test_the_pdf_compiles_without_what_a_profile_leaves_out(demo, tmp_path_factory, monkeypatch):
    house = tmp_path_factory.mktemp("less")
    monkeypatch.chdir(house)
    build = a_house(house, "demo", "demo")
    with_figures(build, [f for f in printed("demo") if f.startswith("figures/")])
    with_records(build, "demo")
    full = build_manuscript("demo").stat().st_size
    for name in ("table_9_*", "table_14_*", "table_15_*", "table_6_*", "table_11_*", "table_13_*", "table_2_decisions",
                 "table_4_*", "figure_10_*"):
        for path in build.glob(f"*/{name}.*"): path.unlink()
    pdf = build_manuscript("demo")
    assert pdf.read_bytes().startswith(b"%PDF") and pdf.stat().st_size < full
    assert "Appendix" in {words(h["supplement"]) for h in asked(build, "heading")}


def test_the_pdf_holds_what_only_bench_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build = a_house(tmp_path, "bench", "bench")
    with_figures(build, [f for f in printed("bench") if f.startswith("figures/")])
    with_records(build, "bench")
    build_manuscript("bench")
    headings = {words(h["body"]) for h in asked(build, "heading")}
    assert {"Schedule", "Alignment"} <= headings and "Cost" not in headings   # no cost was measured here


def test_no_text_is_set_smaller_than_seven_points():
    for path in [ROOT / "paper" / "template.typ", *(ROOT / "paper" / "chapters").glob("*.typ")]:
        source = path.read_text(encoding="utf-8")
        sizes = [float(s) for s in re.findall(r"(?:text\(|size: )(\d+(?:\.\d+)?)pt", source)]
        assert sizes and min(sizes) >= 7, (path.name, min(sizes))


def test_the_manuscript_holds_no_number_of_its_own():
    source = (ROOT / "paper" / "chapters" / "peace.typ").read_text(encoding="utf-8")
    prose = re.sub(r"\d+(?:\.\d+)?(?:pt|cm|em|fr|%)|//.*", "", source)
    known = {"2605.00647", "1.6", "0.2", "0.5"}   # the preprint; seconds and millivolts of ECG paper
    assert set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", prose)) - known == set(), "results come from tables"


def test_the_manuscript_speaks_plainly():
    for path in [ROOT / "paper" / "template.typ", *(ROOT / "paper" / "chapters").glob("*.typ")]:
        source = path.read_text(encoding="utf-8")
        for word in ("cart", "carts", "twin", "twins", "told", "abscissa", "held against", "at the examination",
                     "positives a label", "PEACE less", "nbs/paper"):
            assert not re.search(rf"\b{word}\b", source), (path.name, word)
