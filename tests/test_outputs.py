"""Kept outputs: what the check refuses, what storing leaves alone, and the notebooks of this repository."""
import base64, io, shutil, sys
import nbformat
import pytest
from nbdev.clean import nbdev_clean
from peace_nb.pipeline import kept as outputs
from peace_nb.settings import PeaceError, project_root


def printed(text): return nbformat.v4.new_output("stream", name="stdout", text=text)

def shown(text): return nbformat.v4.new_output("execute_result", data={"text/plain": text})

def write(path, *cells):
    "A notebook of (source, outputs) pairs."
    path.parent.mkdir(parents=True, exist_ok=True)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, outputs=kept) for source, kept in cells])
    nbformat.write(nb, path)
    return path


def test_a_cell_that_shows_something_needs_an_output(tmp_path):
    path = write(tmp_path / "a.ipynb", ("import math\nmath.pi", []), ("print('two')", []), ("x = 3", []), ("x;", []),
                 ("math.pi", [shown("3.14")]), ("#| output: false\nmath.pi", []))
    found = outputs.problems(path)
    assert [sentence.split(" shows")[0] for sentence in found] == ["a.ipynb, cell 0", "a.ipynb, cell 1"]


@pytest.mark.parametrize(
    "source",
    [
        "fig, ax = plt.subplots()\nax.plot([1, 2]);", "plt.plot([1, 2]); plt.show()", "plt.plot([1, 2])",
        "with open('x') as f:\n    print(f.read())", "for i in range(3): print(i)", "display(x)", "x[0]", "f'{x}'",
        "[x for x in y]", "x == y", "fit(x)", "await_me"
    ],
)
def test_shown(source):
    assert outputs.shows(source)


@pytest.mark.parametrize("source", ["", "# a remark", "x = 1", "x;", "def f(): print(1)", "if x: print(x)", "import this", "assert x", "x.append(1)",
                                    "test_eq(x, 1)", "print(x, file=log)", "with redirect_stdout(log):\n    print(x)", "#| hide\nx", "#| eval: false\nx",
                                    "#| output: false\nprint(x)", "%matplotlib inline", "...", "try: f()\nexcept ValueError: print('no')"])
def test_not_certain(source):
    assert outputs.shows(source) is None


def test_functions_of_the_package_that_return_nothing_are_known(tmp_path):
    root = tmp_path
    (root / "peace_nb").mkdir()
    (root / "peace_nb" / "m.py").write_text(
        "def tell(x):\n    if not x: return\n    print(x)\n\ndef give(x): return x\n", encoding="utf-8"
    )
    write(root / "nbs" / "ages" / "a.ipynb", ("tell(0)", []), ("give(0)", []))
    assert [sentence.split(" shows")[0] for sentence in outputs.check_outputs(root)] == ["nbs/ages/a.ipynb, cell 1"]


@pytest.mark.parametrize(
    "text", ["/home/ada/x", "saved in /tmp/tmpab12cd34/x", "'/Users/ada/peace'", "C:\\\\Users\\\\ada", "/root/.cache/x"]
)
def test_a_path_of_a_machine_is_refused(tmp_path, text):
    found = outputs.problems(write(tmp_path / "a.ipynb", ("print(x)", [printed(text)])))
    assert len(found) == 1 and "path of a machine" in found[0]


def test_the_checkout_and_the_environment_are_refused_wherever_they_are(tmp_path):
    for place in (project_root(), sys.prefix):
        found = outputs.problems(write(tmp_path / "a.ipynb", ("print(x)", [printed(f"in {place}/x.py")])))
        assert len(found) == 1 and str(place) in found[0]


@pytest.mark.parametrize(
    "text", ["/data/ptb-xl", "https://example.org/home/x", "a/tmp/b", "n/a", "~/x", "tmp/store", "1/2"]
)
def test_other_slashes_are_not(tmp_path, text):
    assert outputs.problems(write(tmp_path / "a.ipynb", ("print(x)", [printed(text)]))) == []


def test_size_errors_and_saved_by_hand(tmp_path):
    large = write(tmp_path / "a.ipynb", ("print(x)", [printed("x" * 5000)]))
    assert outputs.problems(large, most=4000) == ["a.ipynb has 5 kB; at most 4 kB are kept."]
    warned = write(
        tmp_path / "b.ipynb",
        ("print(x)", [printed("x"), nbformat.v4.new_output("stream", name="stderr", text="careful")])
    )
    assert "cell 0 keeps an error or a warning" in outputs.problems(warned)[0]
    counted = nbformat.v4.new_output("execute_result", data={"text/plain": "1"}, execution_count=3)
    assert "saved by hand" in outputs.problems(write(tmp_path / "c.ipynb", ("1", [counted])))[0]
    assert "directive hides" in outputs.problems(write(tmp_path / "d.ipynb", ("#| output: false\n1", [shown("1")])))[0]


def test_a_time_is_hidden(tmp_path):
    path = write(
        tmp_path / "a.ipynb",
        ("import time\nbegin = time.perf_counter()\nf'{time.perf_counter() - begin:.1f} s'", [shown("0.1 s")])
    )
    assert "cell 0 shows something and takes a time" in outputs.problems(path)[0]


def test_storing_touches_outputs_alone_and_is_what_nbdev_clean_leaves(tmp_path):
    shutil.copy(project_root() / "pyproject.toml", tmp_path)
    path = write(tmp_path / "nbs" / "a.ipynb", ("#| export\nx = 1\nx", []), ("x + 1", []))
    sources = [cell.source for cell in nbformat.read(path, 4).cells]
    outputs.store_outputs(
        path,
        [
            [
                {
                    "output_type": "execute_result", "data": {"text/plain": "<a at 0x7f01>"}, "metadata": {},
                    "execution_count": None
                }
            ],
            [],
        ],
    )
    before = path.read_bytes()
    nbdev_clean(fname=str(path))
    assert path.read_bytes() == before and b"0x7f01" not in before
    assert [cell.source for cell in nbformat.read(path, 4).cells] == sources


def test_a_notebook_that_would_be_too_large_stays_as_it_was(tmp_path):
    path = write(tmp_path / "a.ipynb", ("x", []))
    before = path.read_bytes()
    with pytest.raises(PeaceError, match="a.ipynb would have"):
        outputs.store_outputs(path, [[dict(shown("x" * 3000))]], most=2000)
    assert path.read_bytes() == before


def test_a_picture_becomes_narrow_and_opaque():
    from PIL import Image
    raw = io.BytesIO()
    Image.new("RGBA", (2000, 500), (200, 0, 0, 0)).save(raw, "png")
    kept = outputs.tidy(
        [
            {
                "output_type": "display_data", "data": {"image/png": base64.b64encode(raw.getvalue()).decode()},
                "metadata": {}
            }
        ],
        {},
    )
    small = Image.open(io.BytesIO(base64.b64decode(kept[0]["data"]["image/png"])))
    assert (
        small.size == (outputs.WIDTH, 225)
        and small.convert("RGB").getpixel((5, 5)) == (255, 255, 255)
        and not small.info
    )


def test_the_notebooks_of_a_study_are_left_out():
    names = {path.relative_to(project_root() / "nbs").parts[0] for path in outputs.library_notebooks()}
    assert names and not names & {"paper", "studies", "index.ipynb"}


def test_the_outputs_of_this_repository():
    if not outputs.any_kept(): pytest.skip("no notebook keeps outputs yet: `make outputs` makes them")
    assert outputs.check_outputs() == []
