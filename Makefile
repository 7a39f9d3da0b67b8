# Every chore of the project. Each target sets up its own environment in .venv first, so nothing needs to be activated.
#
#   PYTHON=python3.12 make test    another interpreter for a new .venv
#   EXTRAS=dev make install        another set of extras (see settings.ini), in the newest versions
#   UNLOCKED=1 make install        all extras, in the newest versions instead of those of requirements.lock
#   TORCH=cpu make install         PyTorch without CUDA: about 4 GB less on Linux

# The first of these that is 3.11 or newer and can make environments; the floor stands in pyproject.toml, pip holds it
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11 python,\
  $(shell $(p) -c 'import sys, ensurepip; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
EXTRAS ?= all
VENV ?= .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
INSTALLED := $(VENV)/.installed-$(EXTRAS)
# Versions and hashes of everything that `all` needs, on every system and Python that is supported
LOCK := requirements.lock
UNLOCKED ?= $(if $(filter all,$(EXTRAS)),,1)
TORCH ?=
# What comes with a CUDA build of PyTorch; `make TORCH=cpu` takes the same versions of torch and torchvision without it
CUDA_PARTS := torch|torchvision|triton|nvidia-.*|cuda-.*
# Notebooks and files of tests that run side by side, one thread each: two times two threads would wait for each other
WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
# What builds and checks a release; setuptools, which writes the archives, in the version of the lock
DIST_TOOLS := build==1.6.1 twine==7.0.0 check-wheel-contents==0.6.3 validate-pyproject==0.27
# Where `make reproduce` leaves its segmented sample
SAMPLE := runs/sample

export PIP_DISABLE_PIP_VERSION_CHECK = 1
# nbdev's runner shows figures without a screen; not exported, since it would keep a Jupyter kernel from showing any
HEADLESS := MPLBACKEND=agg

.DEFAULT_GOAL := help
.PHONY: help install lock reproduce test test-all check docs app readme export messages dist clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(INSTALLED): settings.ini setup.py pyproject.toml $(LOCK)
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { \
	  echo "neuroseg needs Python 3.11 or newer with its venv module (on Debian and Ubuntu:" \
	    "apt install python3-venv); install one, or name it:" \
	    "make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "Creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing neuroseg-mri[$(EXTRAS)] into $(VENV): several minutes the first time"
	@# Until version 0.1 the distribution was called neuroseg
	@if ls -d $(VENV)/lib*/python3*/site-packages/neuroseg-*.dist-info >/dev/null 2>&1; then \
	  $(BIN)/python -m pip uninstall --quiet --yes neuroseg; fi
ifeq ($(TORCH),cpu)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend cpu \
	  $(if $(UNLOCKED),torch torchvision,$$(sed -nE 's/^((torch|torchvision)==[^ ]+).*/\1/p' $(LOCK)))
endif
ifneq ($(UNLOCKED),)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
else
	awk '/^[a-z0-9]/ { keep = !/^($(if $(filter cpu,$(TORCH)),$(CUDA_PARTS)))==/ } keep' $(LOCK) >$(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
endif
	@touch $@

install: $(INSTALLED) ## Set up .venv with everything the project uses

lock: ## Write requirements.lock anew after settings.ini changed; UPGRADE=1 takes newer versions
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra all --generate-hashes --no-annotate \
	  --no-emit-index-url --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) setup.py --output-file $(LOCK)

reproduce: $(INSTALLED) ## Rerun every study on the synthetic cohort, segment a sample, name the reports
	$(BIN)/neuroseg reproduce --profile smoke
	rm -rf $(SAMPLE)
	$(BIN)/neuroseg predict neuroseg/samples/phantom -o $(SAMPLE)
	@printf '\nSegmented sample:\n'; ls $(SAMPLE)/*/preview.png
	@printf 'Reports to open:\n'; ls reports/*/smoke/notebook.html

test: $(INSTALLED) ## Run every notebook and every test that is quick: minutes
	@tests/hospital/install_tools.sh
	$(HEADLESS) $(ONE_THREAD) $(BIN)/nbdev-test --n-workers $(WORKERS)
	$(PYTEST) -m 'not slow'

test-all: test ## The same, then the slow tests: whole studies, a wheel in an environment of its own, a browser
	$(PYTEST) -m slow

check: $(INSTALLED) ## Fast static checks: generated files in step, imports, lessons, lengths, requirements
	$(BIN)/ruff check --quiet
	$(BIN)/python -m pytest -q -m 'not slow' --numprocesses $(WORKERS) tests/house
	$(BIN)/python -m pip check

export: $(INSTALLED) ## Write neuroseg/ from the notebooks, and clean them
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean

messages: $(INSTALLED) ## Compile the French texts, neuroseg/app/locale/fr/LC_MESSAGES/neuroseg.po
	$(BIN)/pybabel compile -d neuroseg/app/locale -D neuroseg

readme: $(INSTALLED) ## Write README.md, MODEL_CARD.md and DATASHEET.md from their notebooks, freshly run
	for page in index model_card datasheet; do \
	  $(HEADLESS) $(BIN)/nbdev-test nbs/$$page.ipynb --save && $(BIN)/nbdev-clean --fname nbs/$$page.ipynb || exit 1; \
	done
	$(BIN)/python nbs/_build.py readme README.md
	$(BIN)/python nbs/_build.py card MODEL_CARD.md
	$(BIN)/python nbs/_build.py datasheet DATASHEET.md

docs: $(INSTALLED) ## Build the site into _docs and check its links
	$(BIN)/python nbs/_build.py site _docs

app: $(INSTALLED) ## Start the web application on this machine
	$(BIN)/neuroseg app

dist: ## Build the wheel and the source archive of a release into dist, and check both
	rm -rf build dist
	$(PYTHON) -m venv build/tools
	build/tools/$(notdir $(BIN))/python -m pip install --quiet $(DIST_TOOLS)
	grep -o '^setuptools==[0-9.]*' $(LOCK) >build/constraint.txt
	PIP_CONSTRAINT=build/constraint.txt build/tools/$(notdir $(BIN))/python -m build --outdir dist . >build/log.txt || \
	  { tail -40 build/log.txt; exit 1; }
	build/tools/$(notdir $(BIN))/twine check --strict dist/*
	build/tools/$(notdir $(BIN))/check-wheel-contents dist/*.whl
	build/tools/$(notdir $(BIN))/validate-pyproject pyproject.toml
	cd dist && sha256sum *.whl *.tar.gz | tee SHA256SUMS

clean: ## Remove what the targets build, but .venv and reports
	rm -rf _proc _docs build dist *.egg-info $(SAMPLE) nbs/nbdev.yml
