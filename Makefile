# One command per wish; each makes or refreshes .venv by itself.
#   make demo          everything on this machine, one study to its verdict; EXIT=1 stops there
#   make test          all tests, with a private PostgreSQL and Redis that they start themselves
#   make check         formatting, lint, types, import contracts
#   make bench NAME=…  one benchmark: table, opponent, bars as one JSON line
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NAME ?= hawqv3
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check bench clean format browser

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt client/pyproject.toml | $(BIN)/python
	$(PIP) --editable . --editable client
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]' --editable client
	touch $@

demo: $(VENV)/.installed
	@$(BIN)/python -m examples.demo $(if $(EXIT),--exit)

test: $(VENV)/.installed-dev browser
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The dashboard is tested in a real browser; on Debian as root it is installed when missing.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get -qq update >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y chromium >/dev/null; } \
		|| echo "chromium is not installed: browser tests will skip and say so"

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.$(NAME) $(ARGS)

clean:
	rm -rf $(VENV) .bitwright build dist *.egg-info client/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache .grimp_cache
