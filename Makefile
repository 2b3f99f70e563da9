# Two commands do everything: `make paper` and `make test`. Both set themselves up first.
PROFILE ?= demo
CORES ?= 2
# A few methods instead of all of the profile's: make paper METHODS="PEACE DANN"
METHODS ?=
# One study instead of all: make paper STUDY=peace
STUDY ?=
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif

.PHONY: paper test readme outputs site lab clean
.DEFAULT_GOAL := paper

# The environment is made again only when the lock or the package's own requirements change.
.venv/.ready: constraints.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('peace_nb needs Python 3.11 or newer, but this is ' + sys.version.split()[0]) if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	$(BIN)/python -c "import pathlib; pathlib.Path('.venv/.ready').touch()"

paper: .venv/.ready
	$(BIN)/peace-nb paper --profile $(PROFILE) --cores $(CORES) --methods "$(METHODS)" --study "$(STUDY)"

# One thread a process: two notebooks are tested at a time, and a result must not depend on the number of threads.
test: export OMP_NUM_THREADS = 1
test: .venv/.ready
	$(BIN)/nbdev-test --n-workers $(CORES) --timing --skip-folder-re "^(studies|[_.])"
	$(BIN)/python -m pytest -q -n $(CORES) --dist loadfile

readme: .venv/.ready
	$(BIN)/python -c "from peace_nb.pipeline.readme import write_readme; write_readme()"

# Runs the library notebooks and stores what they show: make outputs ONLY="models ages/01". With REFERENCE=demo it keeps small executed copies of that build instead.
ONLY ?=
REFERENCE ?=
outputs: .venv/.ready
ifeq ($(REFERENCE),)
	$(BIN)/python -c "from peace_nb.pipeline.kept import refresh; refresh('$(ONLY)')"
else
	$(BIN)/python -c "from peace_nb.pipeline.kept import keep_copies; keep_copies('$(REFERENCE)')"
endif

# The documentation, from what is checked in; nothing is run. make site SERVE=1 opens it in a browser.
SERVE ?=
.venv/.site: .venv/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[site]"
	$(BIN)/python -c "import pathlib; pathlib.Path('.venv/.site').touch()"

site: .venv/.site
	$(BIN)/python docs/build.py $(if $(SERVE),--serve)

lab: .venv/.ready
	$(BIN)/python -m jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs

clean:
	$(PYTHON) -c "import shutil; shutil.rmtree('paper/build', ignore_errors=True)"
