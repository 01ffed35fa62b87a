# make demo    install, obtain the default model, run the first study
# make test    install with the developers' tools, then run the tests
# make bench-patching   exact patching beside TransformerLens; writes benchmarks/results/patching.md
# make bench-circuits   circuit discovery beside TransformerLens; writes benchmarks/results/circuits.md
# make bench-dictionaries  matching pursuit, SNMF and training beside public code; writes benchmarks/results/dictionaries.md
# make bench-sweeps     what a sweep costs beside the engine; writes benchmarks/results/sweeps.md
# make bench-explorer     how long one waits for the explorer in Chromium; writes benchmarks/results/explorer.md
# make bench-ray        sweeps on a local Ray cluster that loses nodes; writes benchmarks/results/ray_nodes.md
# make conformance    families x sites x verbs x backends against plain hooks; writes docs/conformance.md (15 minutes)
# make test-ray       sweeps on a local Ray cluster whose workers and nodes die
# make test-browser  the explorer driven in Chromium; pictures in build/screenshots (5 minutes; needs chromium)
# make test-remote    the nnsight backend against an NDIF server started on loopback (needs redis-server; half a gigabyte more)
# make dist     the wheel, installed into an empty environment, which runs the demo (4 minutes)
# make docs     the documentation, into build/site; a warning fails it
# make notebooks   writes the .ipynb of each notebook from its .py
# make check   format, lint, types, and which package imports which
# PYTHON=... chooses the interpreter that the environment is made with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
# Spinning OpenMP threads make shared cores 10-20 times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo setup test check docs dist bench-patching bench-circuits bench-dictionaries bench-sweeps bench-explorer bench-ray notebooks conformance test-ray test-browser test-remote constraints clean

demo: $(VENV)/.installed
	$(BIN)/mechlab demo

setup: $(VENV)/.installed-dev

# Two processes of one thread each are faster on two cores than one process of two threads.
test: setup
	$(BIN)/python -c "from mechlab.models import default_model_folder; default_model_folder(print)"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/python -m pytest -q tests/test_imports.py

# The wheel, installed into an empty environment, runs the first study from there.
dist: setup
	rm -rf build/dist build/empty build/lib
	$(BIN)/python -m build --outdir build/dist .
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt build/dist/*.whl
	cd build/empty && bin/mechlab demo --out runs

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench-patching: setup
	$(BIN)/python benchmarks/patching.py

bench-ray: setup
	$(BIN)/python -P benchmarks/ray_nodes.py

bench-circuits: setup
	$(BIN)/python -m benchmarks.discovery

bench-dictionaries: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.dictionaries
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.dictionary_training

bench-sweeps: setup
	$(BIN)/python -P benchmarks/sweeps.py

bench-explorer: setup
	$(BIN)/python -m benchmarks.explorer

notebooks: setup
	$(BIN)/python notebooks/make_ipynb.py

conformance: setup
	OMP_NUM_THREADS=1 $(BIN)/python -P benchmarks/conformance.py

test-ray: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster tests/sweeps/test_ray.py

test-browser: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/apps/explorer

# The server's environment lies over this one and adds what NDIF needs; mechlab itself stays unknown there.
NDIF := build/ndif
test-remote: setup $(NDIF)/.installed
	MECHLAB_NDIF_PYTHON=$(CURDIR)/$(NDIF)/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/backends/remote_ndif.py

$(NDIF)/.installed: tests/backends/ndif/requirements.txt
	$(PYTHON) -m venv $(NDIF)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $$($(NDIF)/bin/python -c "import site; print(site.getsitepackages()[0])")/under.pth
	$(NDIF)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	$(NDIF)/bin/python -m pip install --quiet --disable-pip-version-check --ignore-requires-python --no-deps ndif==0.1.2
	@touch $@

# Two stamps: what `make demo` needs, and the developers' tools on top of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("mechlab needs Python 3.11 or newer, and $(PYTHON) is %d.%d: run make PYTHON=/path/to/a/newer/python." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --quiet --editable '.[dev]'
	@touch $@

# Newest versions that fit pyproject.toml, with the extras that must agree with it. Then run make test, and commit if it passes.
AGREEING := 'sae-lens>=6.54,<6.55'
NEWEST := build/constraints
constraints:
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --editable '.[dev]' $(AGREEING)
	sed -n '/^#/p' constraints.txt > $(NEWEST)/pins
	$(NEWEST)/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >> $(NEWEST)/pins
	mv $(NEWEST)/pins constraints.txt
	rm -rf $(NEWEST)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
