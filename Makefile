# `make demo` and `make test` do everything, from nothing. Again, they do only what has changed.

CONSTRAINTS ?= constraints.txt
# The first Python on the PATH that is new enough; else any, so that scripts/env.py can say what is wrong.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
    "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && exit; done; echo python3)
endif
BIN := .venv/bin

MINUTES ?= 10

.PHONY: env tools demo test bench lint fuzz sanitize clean

env tools:
	@command -v $(PYTHON) >/dev/null || { echo "Genie needs Python 3.11 or newer, and finds no '$(PYTHON)'." >&2; exit 1; }
	@$(PYTHON) scripts/env.py --constraints $(CONSTRAINTS) $(if $(filter tools,$@),--tools)

demo: env
	@$(BIN)/python examples/02_transformer.py

test: env
	@$(BIN)/tox run

lint: env
	@$(BIN)/tox run -e lint

bench: env
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

fuzz: env
	@$(BIN)/python -m pip install -qq -r fuzz/requirements.txt
	@$(BIN)/python fuzz/run.py --minutes $(MINUTES)

sanitize: env
	@$(BIN)/python fuzz/sanitize.py

clean:
	rm -rf .venv .tox .build .pytest_cache .mypy_cache .ruff_cache .hypothesis genie-*/build genie-*/src/*.egg-info
	find genie-* tests -name __pycache__ -prune -exec rm -rf {} +
	find genie-*/src -name '*.so' -delete
