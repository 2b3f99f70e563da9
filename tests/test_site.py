"""The tools that build the site: rooms, links, the reference read from source, the check of finished pages. Sphinx itself is not run here."""
import ast
import json
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
from tools import api, check, results, stage  # noqa: E402


def notebook(path, *cells):
    "A notebook of texts (beginning with #, then a blank) and code cells."
    made = [{"cell_type": "markdown" if c.startswith("# ") else "code", "source": c, "metadata": {}, **({} if c.startswith("# ") else {"outputs": [], "execution_count": None})} for c in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")


def test_rooms_in_the_listed_order_then_by_name(tmp_path):
    for room in ("b", "a", "z/y"): notebook(tmp_path / "nbs" / room / "01_x.ipynb", "# X")
    found = stage.rooms_of(tmp_path, [{"room": "b", "title": "B", "holds": ""}])
    assert [r["room"] for r in found] == ["b", "a", "z/y"]
    with pytest.raises(ValueError, match="lists the room 'cellar', but nbs/cellar holds no notebook"):
        stage.rooms_of(tmp_path, [{"room": "cellar", "title": "", "holds": ""}])


def test_the_rooms_of_this_repository_are_all_listed():
    import csv
    with open(ROOT / "docs" / "rooms.csv", encoding="utf-8", newline="") as f: listed = list(csv.DictReader(f))
    assert [r["room"] for r in stage.rooms_of(ROOT, listed)] == [r["room"] for r in listed]


def test_a_page_names_notebooks_that_exist_once():
    every = {"peace": [("models/07_peace.ipynb", "PEACE")], "store": [("store/01_store.ipynb", "The store"), ("old/01_store.ipynb", "Old")]}
    assert stage.notebook_links("see {nb}`peace`", every, "p.md") == "see [PEACE](/nbs/models/07_peace.ipynb)"
    assert "/nbs/store/01_store.ipynb" in stage.notebook_links("{nb}`store/store`", every, "p.md")
    with pytest.raises(ValueError, match="'store', but 2 notebooks"): stage.notebook_links("{nb}`store`", every, "p.md")
    with pytest.raises(ValueError, match="'gone', but no notebooks"): stage.notebook_links("{nb}`gone`", every, "p.md")
    with pytest.raises(ValueError, match="called 'nothing'"): stage.fill("<!-- nothing -->", {})


@pytest.mark.parametrize("source, shown, tags", [("#| default_exp x", None, None), ("#| hide\nx = 1", None, None), ("#| export\nx = 1", "x = 1", None),
                                                 ("#| echo: false\nx", "x", ["remove-input"]), ("# a remark\nx", "# a remark\nx", None)])
def test_directives_steer_what_is_shown(source, shown, tags):
    found = stage.shown_cell({"cell_type": "code", "source": source, "metadata": {}, "outputs": [1]})
    assert (found and found["source"]) == shown and (found or {}).get("metadata", {}).get("tags") == tags


def test_a_measured_output_is_not_shown():
    assert stage.shown_cell({"cell_type": "code", "source": "#| output: false\nx", "metadata": {}, "outputs": [1]})["outputs"] == []


def test_the_note_stands_below_title_and_subtitle():
    page = json.loads(stage.notebook_page({"cells": [{"cell_type": "markdown", "source": "# T\n\n> sub\n\nrest [r](../../paper/reference) [i](../index.ipynb)"}]}, "NOTE"))
    assert page["cells"][0]["source"] == "# T\n\n> sub\n\nNOTE\n\nrest [r](/results/index.md) [i](/index.md)"


CODE = '''
def f(
    a: int,  # the first
    b="x",   # the | second
    *more,
    # what stands above
    c: float | None = None,
) -> str:  # a text
    "Join *more to `a`."
    return "x"

def g(x, y): # the sum
    return x + y

# %% ../nbs/a.ipynb #1
def h(x: int): return x

@dataclass
class K:
    "A class."
    size: int = 3  # of it
    def grow(self, by: int = 1):  # one more
        "Grow."
'''


def test_parameters_are_read_with_their_comments():
    tree, comments, lines = ast.parse(CODE), api.comments_of(CODE), CODE.splitlines()
    f, g, h, k = tree.body
    rows = api.parameters(f, comments, lines)
    assert [(r["name"], r["type"], r["default"], r["what"]) for r in rows] == [
        ("a", "int", "", "the first"), ("b", "", "'x'", "the | second"), ("*more", "", "", ""),
        ("c", "float | None", "None", "what stands above"), ("returns", "str", "", "a text")]
    assert api.signature(f) == "(a, b='x', *more, c=None)"
    assert "the \\| second" in api.table(rows) and "`float \\| None`" in api.table(rows)
    assert [r["what"] for r in api.parameters(h, comments, lines)] == [""]   # the mark of a notebook's cell is no description
    assert api.table(api.parameters(h, comments, lines)) and not api.table([{"name": "x", "type": "", "default": "1", "what": ""}])
    assert api.fields(k, comments, lines) == [{"name": "size", "type": "int", "default": "3", "what": "of it"}]
    assert "{py:method} grow(by=1)" in api.klass(k, [], comments, lines)


def test_every_public_name_of_the_package_is_in_the_reference():
    for path in sorted((ROOT / "peace_nb").rglob("*.py")):
        if path.name.startswith("_"): continue
        text, _ = api.module_page(path, "m", None)
        own = {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and api.own_class(node) is None}
        for name in set(api.exported(ast.parse(path.read_text(encoding="utf-8")))) & own:
            assert f"{{py:function}} {name}(" in text or f"{{py:class}} {name}" in text, f"{path}: {name}"


def pages(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(f"<html><body>{text}</body></html>", encoding="utf-8")
    return check.check(folder, ROOT)


def test_what_works_is_not_reported(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    assert pages(tmp_path, a='<h1 id="top">A</h1><a href="b.html#here">b</a><a href="https://example.org/x">out</a><img src="x.png"><a href="#top">up</a>',
                 b='<p id="here">B</p><a href="a.html">a</a><img src="data:image/png;base64,AA==">') == []


@pytest.mark.parametrize("text, said", [('<a href="gone.html">x</a>', "a.html links to gone.html, which does not exist"), ('<img src="gone.png">', "a.html shows gone.png, which does not exist"),
                                        ('<a href="#gone">x</a>', "a.html links to #gone, which has no such place"),
                                        ('<script src="https://cdn.example.org/x.js"></script>', "which lies on another host"),
                                        ('<link rel="stylesheet" href="//fonts.example.org/x.css">', "which lies on another host"),
                                        (f"<p>{ROOT}/nbs</p>", "shows a path of this machine")])
def test_what_is_broken_is_named(tmp_path, text, said):
    found = pages(tmp_path, a=text)
    assert len(found) == 1 and said in found[0]


def test_a_table_is_rounded_escaped_and_folded(tmp_path):
    path = tmp_path / "table_2_full.csv"
    path.write_text("method,auroc\n" + "".join(f"<{i}>,0.12345\n" for i in range(results.MOST + 5)), encoding="utf-8")
    text = results.html_table(path, "paper/reference/x.csv")
    assert "&lt;0&gt;" in text and ">0.123<" in text and "<details>" in text and f"the first {results.MOST} of {results.MOST + 5} rows" in text
    assert text.count("<tr>") == results.MOST + 1


def test_each_reference_run_has_its_tables():
    runs = results.runs_of(ROOT)
    assert runs and runs[0]["profile"] == "demo" and {r["study"] for r in runs} <= {p.name for p in (ROOT / "nbs" / "studies").iterdir()}
    table = results.places_table(ROOT, runs)
    assert "table_02_transfer.ipynb" in table and "#peace-demo-table-2" in table
