# `make` alone lists the commands. Each one first makes .venv complete for itself (tools/bootstrap.py:
# minutes the first time, nothing the next), says what it does, and may be interrupted and run again.

PYTHON ?= python3
# Handed to pip as it is, e.g. for another build of PyTorch: see README.md, "With a GPU".
PIP_ARGS ?=
JUPYTER_ARGS ?=
# Two workers suit two cores; tests/conftest.py divides the cores among them.
WORKERS ?= 2
PYTEST_ARGS ?=

export PIP_ARGS

BIN := .venv/bin
LESSON := notebooks/00_k2_in_one_hour.ipynb
SET_UP = @command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) on the PATH: install Python 3.11 or newer, or name one as PYTHON=/path/to/python3.12."; exit 1; }; \
	MINIK2_COMMAND="make $@" $(PYTHON) tools/bootstrap.py

.DEFAULT_GOAL := help
.PHONY: help course test test-all lessons book proof gpu-check bench experiments clean

help:
	@echo "minik2: Kimi K2 in miniature. The commands:"
	@echo "  make course       set up if need be, and open JupyterLab at lesson 00"
	@echo "  make test         set up if need be, and run the tests with the lessons' steps shortened"
	@echo "  make test-all     every test at full length, the browser test too"
	@echo "  make book         lessons, reference and measurements as pages; no network needed to read"
	@echo "  make proof        hold every part against other implementations; fills the README's table"
	@echo "  make gpu-check    the same of a GPU against the reference, if there is one; minutes"
	@echo "  make bench        time both engines beside transformers; wants a quiet machine"
	@echo "  make experiments  K2's claims tried small; goes on where it stopped (half an hour)"
	@echo "  make lessons      build the notebooks from lessons/ and run them (minutes)"
	@echo "  make clean        remove what tests and tools left behind (.venv stays)"
	@echo "With PYTHON=python3.12 another Python makes .venv; PIP_ARGS and JUPYTER_ARGS are passed on."

# Jupyter refuses to run as root unless told; containers do, and it listens on this machine alone.
course:
	$(SET_UP) course
	@echo "==> JupyterLab at $(LESSON), reachable from this computer only; Ctrl-C twice stops it"
	@exec $(BIN)/jupyter-lab --ServerApp.ip=127.0.0.1 $$([ "$$(id -u)" = 0 ] && echo --allow-root) \
		$(JUPYTER_ARGS) $(LESSON)

test:
	$(SET_UP) course test text
	@echo "==> the quick tests, $(WORKERS) at a time, lessons with shortened steps"
	@MINIK2_SHORT=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
		-m "not slow and not browser" $(PYTEST_ARGS)

test-all:
	$(SET_UP) book course test text
	@echo "==> every test at full length, $(WORKERS) at a time"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

lessons:
	$(SET_UP) course
	@echo "==> notebooks/, exercises/ and solutions/ from lessons/, run from top to bottom"
	@$(BIN)/python -m lessons.build --execute
	@$(BIN)/python tools/readme_picture.py

# Lessons are shown as they were last run; pages stay in build/book/html.
book:
	$(SET_UP) book course
	@echo "==> the book from notebooks/, documents, docstrings and results; Ctrl-C leaves the old one"
	@$(BIN)/python -m book.build

proof:
	$(SET_UP) course test text
	@echo "==> every part against every other implementation, on random configurations"
	@$(BIN)/python -m benchmarks.proof --record

gpu-check:
	$(SET_UP) course
	@echo "==> the torch engine on a GPU against the reference"
	@$(BIN)/python -m benchmarks.gpu_check --record

# One process at a time has the cores: anything that runs beside it spoils the figures. One that falls
# short does not keep the others from being measured.
BENCHMARKS := forward decode absorption training newton_schulz small ranks fullsize formats imports grading lessons
bench:
	$(SET_UP) course test text
	@echo "==> speed, imports, checks and lessons; close what else is running"
	@failed=; for part in $(BENCHMARKS); do echo "==> benchmarks.$$part"; \
		$(BIN)/python -m benchmarks.$$part --record || failed="$$failed $$part"; done; \
		[ -z "$$failed" ] || { echo "==> short of what is promised:$$failed"; exit 1; }

# Every run is kept in runs/experiments: a second call makes only what is missing.
experiments:
	$(SET_UP) course
	@echo "==> experiments at a laptop's size; Ctrl-C saves, and the same command goes on"
	@$(BIN)/python -m minik2.experiments

clean:
	rm -rf build dist .artifacts .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find minik2 tests tools lessons -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
