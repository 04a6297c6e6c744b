# Each target says behind ## what it does; `make help` lists them.
# PYTHON=python3.12 chooses the interpreter, ARGS="..." is handed to the command of the target.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PY := .venv/bin/python
ARGS ?=
export PYTHON

.PHONY: help setup run demo test torture bench bench-peers check install uninstall deb lock clean .run .dev .peers

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

setup: .run .dev ## Make .venv with both commands and the developers' tools in it

run: .run ## Start the daemon in the foreground on ./var, with the example jobs
	@printf '%s\n' \
	  "Drop a request into $$(pwd -P)/var/spool/incoming; its result appears in var/results. Try, in another terminal:" \
	  "" \
	  "  cd '$$(pwd -P)'" \
	  "  echo '{\"job\": \"demo-settlement\", \"tenant_id\": \"acme\", \"params\": {\"period\": \"2026-03\"}}' > var/request.json" \
	  "  mv var/request.json var/spool/incoming/ && .venv/bin/craft-easy-jobd status" \
	  "" \
	  "Ctrl-C stops the daemon."
	@exec $(PY) -m craft_easy_jobd serve --root ./var --jobs craft_easy_jobs.demo $(ARGS)

demo: .run ## Show it all in 15 seconds: start, drop four requests, live output, results, stop
	@exec $(PY) -m tests.support.tour

test: .run .dev ## Run the tests, in two processes; ARGS="-k spool" picks some, ARGS=-n0 runs them in one
	@exec $(PY) -m pytest -n 2 $(ARGS)

torture: .run .dev ## Run the whole fault suite, as root with power cuts; CRAFT_EASY_FAULTS_SEED=N repeats one
	@CRAFT_EASY_FAULTS=torture exec $(PY) -m pytest -o faulthandler_timeout=0 tests/faults tests/system/test_reload.py $(ARGS)

bench: .run .dev ## Measure throughput, latency, memory, starts, stops; ARGS="--only spool --reps 3"
	@exec $(PY) -m tests.bench $(ARGS)

bench-peers: .run .dev .peers ## The same beside taskiq, dramatiq, huey and SAQ; needs redis-server
	@exec $(PY) -m tests.bench --peers $(ARGS)

check: .run .dev ## Lint, format, types, import layers, and what else guards the tree
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	$(PY) -m pip check
	$(PY) -m pytest -q tests/packaging/test_tree.py tests/packaging/test_units.py

install: .run ## Install the service, as root: PREFIX=/usr/local, PYTHON=/usr/bin/python3; DESTDIR=... for a package
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' systemd/install install

uninstall: ## Remove what install put there; settings and data stay
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' systemd/install uninstall

deb: .run ## Build a Debian package into dist, for this machine's architecture and its /usr/bin/python3
	@systemd/debian/build dist

lock: .run .dev ## Resolve the dependencies anew (needs network); ARGS=--upgrade for newer versions
	$(PY) -m pip install --quiet uv
	$(PY) -m uv $(COMPILE) --group dev --output-file .requirements/dev.lock $(ARGS)
	$(PY) -m uv $(COMPILE) --constraint .requirements/dev.lock --output-file .requirements/run.lock $(ARGS)
	$(PY) -m uv $(COMPILE_OPTIONS) --group peers --output-file .requirements/peers.lock $(ARGS)

# Hashes and no host names: any index that serves the same files will do.
COMPILE_OPTIONS = pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-annotate --no-header
COMPILE = $(COMPILE_OPTIONS) --group build pyproject.toml

clean: ## Remove what was made: environment, caches, builds; ./var stays
	rm -rf .venv .venv-peers build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.run:
	@.requirements/install run

.dev: .run
	@.requirements/install dev

.peers:
	@.requirements/install peers
