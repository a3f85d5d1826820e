# Two environments: .venv (workstation: torch, onnx, onnxruntime-training) and .venv-device (what a device has: numpy, onnxruntime).
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(if $(shell $(p) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo ok),$(p),)))
VENV := .venv
DEVICE := .venv-device
OLD := .venv-ort117
PIP := -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint bench clean

demo: $(VENV)/.ready $(DEVICE)/.ready
	$(VENV)/bin/python examples/hapt_demo.py --device-python $(DEVICE)/bin/python

test: $(VENV)/.ready $(DEVICE)/.ready $(OLD)/.ready
	$(VENV)/bin/pytest -n 2 -m "not slow"

test-slow: $(VENV)/.ready $(DEVICE)/.ready $(OLD)/.ready
	$(VENV)/bin/pytest -m slow

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.ready $(DEVICE)/.ready
	$(VENV)/bin/python benchmarks/lowering.py
	$(VENV)/bin/python benchmarks/adaptation.py

$(VENV)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) torch==2.13.0
	$(VENV)/bin/python $(PIP) -e ".[workstation,dev]"
	touch $@

$(DEVICE)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed"; exit 1; }
	$(PYTHON) -m venv $(DEVICE)
	$(DEVICE)/bin/python $(PIP) -e ".[device]"
	touch $@

# The oldest onnxruntime that artifacts promise to load on; it was built against numpy 1.
$(OLD)/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed"; exit 1; }
	$(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python -m pip install --quiet --disable-pip-version-check "onnxruntime==1.17.3" "numpy==1.26.4" -e .
	touch $@

clean:
	rm -rf $(VENV) $(DEVICE) $(OLD) .demo demo.json build dist
