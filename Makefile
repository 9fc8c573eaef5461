# make help    says what there is
# PYTHON       the interpreter to build .venv with (3.11); TORCH_INDEX: index that holds the CPU or CUDA build of torch you want;
# ARGS         passed on to cptlab, for example: make figures ARGS="02 -p seeds='[0]'"

PYTHON ?= python3.11
TORCH_INDEX ?=
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --no-input --disable-pip-version-check
IS_311 := -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'
# What git gets of a notebook: no outputs, counts, injected parameters, nor metadata that running it or looking at it writes.
STRIP := -m nbstripout --keep-id --drop-tagged-cells injected-parameters --extra-keys "metadata.language_info.version metadata.papermill \
  cell.metadata.papermill cell.metadata.jupyter cell.metadata.editable cell.metadata.slideshow"

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help install figures test lab strip filter bench clean distclean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 20

install: .venv/.corpora  ## the locked environment in .venv, and the embedded corpora

# torch comes first, by itself, so that TORCH_INDEX chooses its build and the lock then finds it there. The constraint also pins
# what packages without a wheel are built with.
.venv/.ok: requirements.lock pyproject.toml
	@$(BIN)/python $(IS_311) 2>/dev/null && $(PIP) --version >/dev/null 2>&1 || { \
	  for python in "$(PYTHON)" python3 python; do \
	    if "$$python" $(IS_311) 2>/dev/null; then echo "creating .venv with $$python"; exec "$$python" -m venv --clear .venv; fi; \
	  done; \
	  echo "cptlab needs Python 3.11: neither $(PYTHON) nor python3 is one. Install it, or run: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing requirements.lock (the first time this takes minutes)"
	@PIP_CONSTRAINT=requirements.lock $(PIP) install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' requirements.lock)
	@PIP_CONSTRAINT=requirements.lock $(PIP) install -q -r requirements.lock
	@$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

.venv/.corpora: .venv/.ok
	@echo "fetching the embedded corpora"
	@$(BIN)/cptlab corpora fetch
	@touch $@

figures: .venv/.corpora  ## run every notebook at the laptop profile: stored runs are served, missing ones trained; writes figures/
	$(BIN)/cptlab figures $(ARGS)
	@$(BIN)/cptlab claims > /dev/null

test: .venv/.corpora  ## ruff, unit tests, and every notebook at the smoke profile with all its runs trained anew
	$(BIN)/ruff check .
	$(BIN)/pytest -q
	$(BIN)/cptlab figures --profile smoke --fresh $(ARGS)

lab: .venv/.corpora  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=notebooks

strip: .venv/.ok  ## clear the notebooks in notebooks/ of outputs and traces of a run; ids and tags of cells stay
	@for book in notebooks/*.ipynb notebooks/*/*.ipynb; do \
	  [ -f "$$book" ] || continue; \
	  $(BIN)/python $(STRIP) <"$$book" >"$$book.tmp" || { rm "$$book.tmp"; echo "$$book is not a notebook" >&2; exit 1; }; \
	  if cmp -s "$$book" "$$book.tmp"; then rm "$$book.tmp"; else mv "$$book.tmp" "$$book" && echo "stripped $$book"; fi; \
	done

filter: .venv/.ok  ## let git strip notebooks in this clone by itself, so that running one in JupyterLab leaves no diff
	@git config filter.notebooks.clean '"$(CURDIR)/$(BIN)/python" $(STRIP)'

bench: .venv/.corpora  ## training against transformers.Trainer, bf16 against fp32, the time to serve a stored run, speed and memory of the corpus pipeline, fits
	$(BIN)/cptlab bench train
	$(BIN)/cptlab bench compute
	$(BIN)/cptlab bench serve
	$(BIN)/cptlab bench corpora
	$(BIN)/cptlab bench laws

clean:  ## remove executed notebooks, fresh and smoke runs, and caches of tools (your own runs in runs/local stay)
	rm -rf runs/notebooks runs/fresh runs/local/smoke .pytest_cache .ruff_cache build
	find lib tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

distclean: clean  ## also remove .venv and .cache (downloads, built corpora, compiled kernels)
	rm -rf .venv .cache lib/*.egg-info
