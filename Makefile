# Every target sets up what it needs; none needs another to be run first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/market/latest
SHOWN := '[title,employer,place,salary]'

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench bench-index bench-scale serving-check clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,train,dev]'
	@touch $@

setup: $(VENV)/installed ## the environment in .venv, under constraints.txt

demo: $(VENV)/installed ## from raw logs to retrieved jobs, on the synthetic job market (2 minutes)
	$(BIN)/python prepare.py data=market
	$(BIN)/python train.py experiment=market
	$(BIN)/python export.py run=$(RUN) index=flat bundle=$$(readlink -f $(RUN))/bundle
	@echo; echo 'The best jobs for two members:'
	$(BIN)/python query.py bundle=$(RUN)/bundle user=m0000007 k=5 at=export columns=$(SHOWN)
	$(BIN)/python query.py bundle=$(RUN)/bundle user=m0000042 k=5 at=export columns=$(SHOWN)
	@echo; echo 'For the second, only where a visa is sponsored and the salary is known to be at least 60,000:'
	$(BIN)/python query.py bundle=$(RUN)/bundle user=m0000042 k=5 at=export columns=$(SHOWN) filter='"sponsors_visa and salary >= 60000"'
	@echo; echo 'Next, try:'
	@echo '  $(BIN)/python query.py bundle=$(RUN)/bundle user="{field: Nursing, skills: [Triage], place: Berlin}" at=export'
	@echo '  $(BIN)/python train.py --help'
	@echo '  $(BIN)/python train.py refit=$(RUN)'
	@echo '  open $(RUN)/eval/test/report.html'

test: $(VENV)/installed ## lint, types, tests (about 10 minutes)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 TOWERS_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/installed ## lint and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed ## all benchmarks; each ends with a line `name=… value=… goal=… holds=yes|no`
	for b in preparation training evaluation retriever quality; do $(BIN)/python -m benchmarks.$$b || exit 1; done

bench-scale: $(VENV)/installed ## reading, growth and a large table, in 30 minutes; what takes longer is in each --help
	$(BIN)/python -m benchmarks.reading
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.tables --rows 10000000

bench-index: $(VENV)/installed ## kinds of index, filters, live items, swaps, spoilt bundles, skew (2 hours); ARGS="--items 50000" is sooner
	test -e runs/melo/latest || $(BIN)/python train.py experiment=melo
	test -e runs/market/latest/bundle || $(MAKE) demo
	$(BIN)/python -m benchmarks.index --run runs/melo/latest $(ARGS)
	$(BIN)/python -m benchmarks.filtered
	$(BIN)/python -m benchmarks.filtered --random 1000000 --items 30000 --dim 32
	$(BIN)/python -m benchmarks.live
	$(BIN)/python -m benchmarks.live --kills 200
	$(BIN)/python -m benchmarks.swaps
	$(BIN)/python -m benchmarks.corruption
	$(BIN)/python -m benchmarks.skew

serving-check: $(VENV)/installed ## a bundle is served by `pip install .[cpu]` alone: no torch, no Lightning
	test -e $(RUN)/bundle || $(MAKE) demo
	$(PYTHON) -m venv $(VENV)-serving
	$(VENV)-serving/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[cpu]'
	$(VENV)-serving/bin/python -I tests/serving_check.py $(RUN)/bundle

clean: ## remove prepared data and runs (not the environment)
	rm -rf var runs
