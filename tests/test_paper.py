"""The paper end to end in the smoke profile: what it makes, what it makes again, and what it says where it cannot."""
import json
import os
import re
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest

from conftest import ROOT
from peace_nb.pipeline.tables import data_note, load_reported
from peace_nb.pipeline.steps import STEPS, jobs, left_out, step_names, studies
from peace_nb.pipeline.build import build_paper, run_step
from peace_nb.pipeline.rows import pretrained_as
from peace_nb.pipeline.readme import render_readme
from peace_nb.settings import PeaceError, load_profile
from peace_nb.training.checkpoint import load_model

TABLES = (
    "table_1_cohorts", "table_1_labels", "table_2_transfer", "table_2_full", "table_3_sim2real", "table_3_children"
)
FIGURES = ("figure_1_framework", "figure_2_training", "figure_3_labels", "figure_4_ecgs")


def plan(settings=ROOT / "settings.ini", profile="smoke") -> set[str]:
    "Rules that Snakemake would run under these settings."
    said = subprocess.run(
        [
            sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "paper" / "Snakefile"), "--directory",
            str(ROOT / "paper" / "build" / profile), "--cores", "1", "--config", f"profile={profile}", "study=",
            "--nolock", "--dry-run"
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PEACE_SETTINGS": str(settings)},
    )
    assert said.returncode == 0, said.stderr
    return {kind_of(rule) for rule in re.findall(r"^(?:local)?rule (\S+):", said.stdout + said.stderr, re.M)} - {"all"}


def kind_of(rule: str) -> str:
    "The step of a job: `pretrain_PEACE_seed0` is a `pretrain`, every cohort a `cohort`."
    name = next((s.name for s in STEPS if rule == s.name or rule.startswith(f"{s.name}_")), rule)
    return name.split("-")[0] if name.startswith("cohort-") else name


def test_the_paper_holds_what_was_promised(smoke):
    assert (smoke / "paper.pdf").read_bytes().startswith(b"%PDF")
    for name in TABLES: assert len(pd.read_csv(smoke / "tables" / f"{name}.csv")), name
    for name in FIGURES:
        assert (smoke / "figures" / f"{name}.png").stat().st_size > 10_000 and (
            smoke / "figures" / f"{name}.pdf"
        ).read_bytes().startswith(b"%PDF")
    executed = set(step_names("smoke", "peace"))
    assert executed <= {p.stem for p in (smoke / "notebooks").glob("*.ipynb")} and {
        j.step.name for j in jobs("smoke")
    } == {s.name for s in STEPS} - left_out(load_profile("smoke"))
    for study in studies()[1:]:
        for page in ("paper.pdf", "report.html"): assert (smoke.parent / study / page).is_file(), f"{study}: no {page}"
    report = (smoke / "report.html").read_text(encoding="utf-8")
    for name in executed: assert f"notebooks/{name}.html" in report and (smoke / "notebooks" / f"{name}.html").exists()
    assert data_note("smoke") in report


def test_every_step_left_a_record(smoke):
    made = json.loads((smoke / "provenance.json").read_text(encoding="utf-8"))
    assert made["note"] == data_note("smoke") and made["real_cohorts"] == []
    own = {s.name for s in STEPS if s.study == "peace"} - left_out(load_profile("smoke"))
    assert {s["step"].split("_")[0] for s in made["steps"]} == own
    for s in made["steps"]:
        assert (
            s["seconds"] > 0
            and s["peak_memory_mb"] > 0
            and s["parameters"]["profile"] == "smoke"
            and s["packages"]["torch"]
            and "commit" in s
        ), s["step"]
    assert set(made["data"]) >= {"adult", "child", "ptbxl", "extra"} and all(made["data"].values())


def test_reported_numbers_come_from_the_file_alone(smoke):
    wide, headline = (
        pd.read_csv(smoke / "tables" / "table_2_transfer.csv").set_index("method"), load_reported()["headline"]
    )
    cell = wide.loc["PEACE", "children, full"].split(" | ")
    assert cell[1:] == [f"{headline['v1']['zzu_full']:.1f}", f"{headline['v2']['zzu_full']:.1f}"]
    assert wide.loc["ECG-only", "children, full"].endswith("| - | -")
    full = pd.read_csv(smoke / "tables" / "table_2_full.csv")
    assert (
        set(full["data"]) == {"simulated cohorts"} and set(full["profile"]) == {"smoke"} and (full["seeds"] == 1).all()
    )
    sources = [
        p
        for p in [*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("paper/**/*.typ"), ROOT / "README.md", ROOT / "settings.ini"]
        if ".ipynb_checkpoints" not in p.parts
    ]
    told = load_reported()
    numbers = {
        str(v)
        for table in ("headline", "table_transfer", "table_ablation")
        for row in told[table].values()
        for v in row.values()
        if v
    }
    for p in sources:
        text = p.read_text(encoding="utf-8")
        # our own numbers, from paper/reference
        if p.name == "README.md":
            text = re.sub(r"## What comes out.*?(?=## More)", "", text, flags=re.S)
        if p.suffix == ".ipynb": text = "\n".join(c.source for c in nbformat.reads(text, 4).cells)
        assert not [n for n in numbers if re.search(rf"(?<![\d.]){re.escape(n)}(?![\d])", text)], (
            f"{p} holds a number of the preprint; it belongs to paper/reported.yaml"
        )


def test_a_second_call_runs_nothing(smoke, alone):
    before = {p: p.stat().st_mtime_ns for p in (smoke / "provenance").glob("*.json")}
    start = time.perf_counter()
    build_paper("smoke")
    took = time.perf_counter() - start
    assert before == {p: p.stat().st_mtime_ns for p in (smoke / "provenance").glob("*.json")}
    assert took < 60, f"a call with nothing to do took {took:.0f} s"


@pytest.mark.parametrize(
    "key, value, stale, fresh",
    [
        (
            "bootstrap", "90", {"table-2", "figure-3", "sim2real-test"},
            {"cohort", "pretrain", "transfer", "sim2real-train", "figure-2"}
        ),
        ("lsbc_weight", "0.3", {"pretrain", "transfer", "sim2real-train"}, {"cohort", "table-1", "figure-4"}),
        ("finetune_epochs", "1", {"transfer", "table-2"}, {"cohort", "pretrain", "figure-2", "sim2real-train"}),
    ],
)
def test_a_changed_setting_reruns_what_depends_on_it(smoke, tmp_path, key, value, stale, fresh):
    text = (ROOT / "settings.ini").read_text(encoding="utf-8")
    smoke_section = text.index("[smoke]\n") + len("[smoke]\n")
    before, after = text[:smoke_section], text[smoke_section:]
    own, rest = after[:after.index("\n[")], after[after.index("\n["):]
    own = "".join(line for line in own.splitlines(True) if not line.startswith(f"{key} ="))
    (tmp_path / "settings.ini").write_text(f"{before}{key} = {value}\n{own}{rest}", encoding="utf-8", newline="\n")
    kept, found = plan(), plan(tmp_path / "settings.ini")
    assert not kept, "the plan of a finished build is empty"
    assert stale <= found, f"not rerun: {stale - found}"
    assert not fresh & found, f"rerun for nothing: {fresh & found}"


def test_only_the_method_that_reads_text_depends_on_it(smoke):
    from peace_nb.pipeline.steps import stage_settings
    assert hasattr(stage_settings("pretrain", "smoke", "PEACE"), "lsbc_weight") and not hasattr(
        stage_settings("pretrain", "smoke", "ECG-only"), "lsbc_weight"
    )


def test_a_row_that_begins_with_anothers_pretraining_has_all_that_it_learned_and_remembers(smoke):
    seen = set()
    for name in load_profile("smoke").methods:
        if not (base := pretrained_as(name)): continue
        own, other = (load_model(smoke / "models" / m / "seed0") for m in (name, base))
        a, b = own.method.state_dict(), other.method.state_dict()
        shared = [k for k in a if k in b and not k.startswith(("prompts", "knowledge.compose.embeddings"))]
        assert shared and all(a[k].equal(b[k]) for k in shared), f"{name} does not begin as {base}"
        assert {k for k, _ in other.method.named_parameters()} <= set(shared)
        seen |= set(shared)
    assert "film.seen" in seen and "gate.ema" in seen      # the range of ages, and the gate's memory


def test_an_unknown_parameter_is_a_fault():
    with pytest.raises(PeaceError, match="table_01_cohorts.ipynb has no parameter learning_rte"):
        run_step("table-1", "smoke", learning_rte=1)


@pytest.mark.parametrize(
    "said, told",
    [("peace-nb: 60.ipynb stopped in cell 3: no child.", "cell 3: no child"), ("MissingOutputException", "graph.log")]
)
def test_a_graph_that_fails_says_why_or_where(monkeypatch, tmp_path, said, told):
    monkeypatch.setattr("peace_nb.pipeline.build.build_dir", lambda profile, study=None: tmp_path)
    monkeypatch.setattr(
        "peace_nb.pipeline.build._snakemake", lambda *_: [sys.executable, "-c", f"import sys; sys.exit({said!r})"]
    )
    with pytest.raises(PeaceError, match=told): build_paper("smoke")
    assert said in (tmp_path / "graph.log").read_text()


def test_an_unset_root_is_told_before_any_work(monkeypatch):
    for name in ("PEACE_SAMPLE_DATA", "PEACE_ZZU_PECG", "PEACE_MIMIC_IV_ECG", "PEACE_PTB_XL"):
        monkeypatch.delenv(name, raising=False)
    for profile, variable in (("sample", "PEACE_SAMPLE_DATA"), ("paper", "PEACE_MIMIC_IV_ECG")):
        started = set((ROOT / "paper" / "build" / profile).glob("**/*"))
        with pytest.raises(PeaceError, match=f"{variable} is not set"): build_paper(profile)
        assert set((ROOT / "paper" / "build" / profile).glob("**/*")) == started, (
            "nothing may be written before the roots are known"
        )


def test_the_readme_is_the_index():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == render_readme(), "run `make readme`"


def test_the_readme_is_short_and_shows_a_picture_first():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900 and "![" in text[:700]


def test_every_link_of_the_readme_leads_somewhere():
    for link in re.findall(r"\]\(([^)#\s]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert "://" in link or (ROOT / link).exists(), link


def test_the_manuscript_is_the_same_bytes_again(smoke, alone):
    from peace_nb.pipeline.manuscript import build_manuscript
    kept = {p: (p.read_bytes(), p.stat()) for p in (smoke / "paper.pdf", smoke / "provenance.json")}
    try:
        # here and not the kept one: that names the commit it was built from
        once = build_manuscript("smoke").read_bytes()
        assert build_manuscript("smoke").read_bytes() == once
    finally:
        for p, (data, was) in kept.items():
            p.write_bytes(data)
            os.utime(p, ns=(was.st_atime_ns, was.st_mtime_ns))   # or the report would be stale


def test_a_step_without_its_record_is_not_done(smoke, alone):
    "A notebook that was run by hand leaves a table but no record; the paper must run that step before it is written."
    hide = [smoke / "provenance" / "table-1.json", smoke / "paper.pdf"]
    for p in hide: p.rename(p.with_name(p.name + ".hidden"))
    try: assert "table-1" in plan()
    finally:
        for p in hide: p.with_name(p.name + ".hidden").rename(p)
