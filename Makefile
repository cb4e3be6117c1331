# Hosi Server: every command of the project. `make` or `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export FLASK_APP := app.py

.PHONY: help run test lint seed lock bench fuzz clients docs postman screenshots newman clean
.DEFAULT_GOAL := help

help:  ## list the commands
	@grep -hE '^[a-z ]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Hosi Server needs Python 3.11 or newer; say which with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Making the virtual environment $(VENV)…"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt $(VENV)/pyvenv.cfg
	@echo "Installing the packages (about 30 seconds the first time)…"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/pyvenv.cfg
	@echo "Installing the packages for tests and linters (about a minute the first time)…"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

.env:
	cp .env.example .env

run: $(VENV)/.run .env  ## set everything up and serve at http://127.0.0.1:5000
	@echo "Bringing the database up to date…"
	@$(BIN)/flask db upgrade
	@$(BIN)/flask welcome
	$(BIN)/python serve.py

WORKERS ?= 3
test: $(VENV)/.dev  ## set everything up and run the whole suite, on SQLite and PostgreSQL (quicker: make test ARGS='-m "not slow"')
	-@if command -v npm >/dev/null; then $(MAKE) --no-print-directory newman; fi
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(VENV)/.dev  ## check style and types, with ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev  ## measure the cost of requests and write bench/RESULTS.md
	$(BIN)/python -m bench --save

seed: $(VENV)/.run .env  ## fill the database with a small demonstration clinic
	$(BIN)/flask db upgrade
	$(BIN)/flask seed $(ARGS)

lock: $(VENV)/.dev  ## lock requirements*.in into requirements*.txt, with hashes
	$(BIN)/uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" requirements.in -o requirements.txt
	$(BIN)/uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" requirements-dev.in -o requirements-dev.txt

MINUTES ?= 10
fuzz: $(VENV)/.dev  ## send requests generated from the OpenAPI document, on SQLite and PostgreSQL, for MINUTES=10
	FUZZ_MINUTES=$(MINUTES) $(BIN)/pytest -o faulthandler_timeout=0 tests/test_fuzz.py $(ARGS)

clients: $(VENV)/.run  ## generate clients from the OpenAPI document, compile them and run them against a server (needs npm)
	$(BIN)/python -m testing.clients $(ARGS)

docs postman: $(VENV)/.dev  ## write docs/endpoints.md and the Postman collection
	$(BIN)/python docs/make.py

screenshots: $(VENV)/.dev  ## take pictures of the clinic's page into docs/images/ (needs Chromium)
	$(BIN)/python -m testing.screenshots

newman: node_modules/axe-core  ## install newman, axios and axe-core, which test the Postman collection, docs/spa.md and the clinic's page (make test does this if npm is installed)
node_modules/axe-core:
	npm install --no-save --no-package-lock --no-fund --no-audit newman@6 axios@1 axe-core@4

clean:  ## remove the virtual environment and the caches, but never the data in instance/
	rm -rf $(VENV) testing/clients/.venv testing/clients/node_modules .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
