# make demo: the whole system on the mini world. make figures: the sweeps, with error bars; make figures FIGURES="--only snr".
# make network: many users. make real: a real language model, hours; make real REAL="--only residual".
# make test: the tests that take seconds; make test-all: all of them.
# Each makes .venv if it is missing and installs requirements.txt there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo figures network real test test-all lint clean

demo: $(VENV)/ready
	$(BIN)/python task_align.py
	$(BIN)/python task_avqa.py

figures: $(VENV)/ready
	$(BIN)/python benchmarks/sweeps.py $(FIGURES)

network: $(VENV)/ready
	$(BIN)/python task_align.py --resume true
	$(BIN)/python task_network.py

real: $(VENV)/ready
	$(BIN)/python utils/smollm2.py
	$(BIN)/python benchmarks/real_language_model.py $(REAL)

test: $(VENV)/ready lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile -m "not slow"

test-all: $(VENV)/ready lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.txt
	touch $@

clean:
	rm -rf $(VENV) datasets/mini datasets/cache
