# Two environments: .venv (workstation: torch, onnx, onnxruntime-training) and .venv-device (what a device has: numpy, onnxruntime).
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(if $(shell $(p) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo ok),$(p),)))
VENV := .venv
DEVICE := .venv-device
OLD := .venv-ort117
OPENVINO := .venv-openvino
WEBGPU := .venv-webgpu
CUDA := .venv-cuda
BENCH_ORT := .venv-bench-ort
BENCH_MNN := .venv-bench-mnn
PIP := -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow test-reliability test-portability lint bench bench-setup clean

demo: $(VENV)/.ready $(DEVICE)/.ready
	$(VENV)/bin/python examples/hapt_demo.py --device-python $(DEVICE)/bin/python

test: $(VENV)/.ready $(DEVICE)/.ready $(OLD)/.ready
	$(VENV)/bin/pytest -n 2 -m "not slow"

test-slow: $(VENV)/.ready $(DEVICE)/.ready $(OLD)/.ready
	$(VENV)/bin/pytest -m slow

# Kills, power cuts, failing disks, a long run, and fuzzing led by coverage: docs/reliability.md.
test-reliability: $(VENV)/.ready $(DEVICE)/.ready
	$(VENV)/bin/python $(PIP) -e ".[fuzz]"
	$(VENV)/bin/python tests/reliability/run.py --device-python $(DEVICE)/bin/python

# Twenty updates on every onnxruntime that can be had on this machine, compared with PyTorch's. What needs more than the
# environments of `make test` is made when its turn comes, and skipped where that cannot be done.
test-portability: $(VENV)/.ready $(DEVICE)/.ready $(OLD)/.ready
	$(VENV)/bin/python tests/portability/run.py

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.ready $(DEVICE)/.ready
	$(VENV)/bin/python benchmarks/lowering.py
	$(VENV)/bin/python benchmarks/adaptation.py

# What `edgeff bench memory` compares with, each in an environment of its own: they cannot share one.
bench-setup: $(VENV)/.ready $(DEVICE)/.ready $(BENCH_ORT)/.ready $(BENCH_MNN)/.ready

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

# For `make test-portability`: onnxruntimes with other execution providers.
$(OPENVINO)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed"; exit 1; }
	$(PYTHON) -m venv $(OPENVINO)
	$(OPENVINO)/bin/python $(PIP) "onnxruntime-openvino==1.24.1" -e .
	touch $@

$(WEBGPU)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed"; exit 1; }
	$(PYTHON) -m venv $(WEBGPU)
	$(WEBGPU)/bin/python $(PIP) "onnxruntime==1.32.0" "onnxruntime-ep-webgpu==0.4.0" -e .
	touch $@

# Gigabytes: with the libraries of CUDA and cuDNN.
$(CUDA)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed"; exit 1; }
	$(PYTHON) -m venv $(CUDA)
	$(CUDA)/bin/python $(PIP) "onnxruntime-gpu[cuda,cudnn]==1.31.1" -e .
	touch $@

# With a newer onnx its models would be of an IR version that 1.19.2 refuses. It runs without torch.
$(BENCH_ORT)/.ready:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed"; exit 1; }
	$(PYTHON) -m venv $(BENCH_ORT)
	$(BENCH_ORT)/bin/python -m pip install --quiet --disable-pip-version-check \
		"onnxruntime-training-cpu==1.19.2" "onnx==1.17.0" "numpy==2.4.6" "protobuf==7.36.2"
	touch $@

$(BENCH_MNN)/.ready:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed"; exit 1; }
	$(PYTHON) -m venv $(BENCH_MNN)
	$(BENCH_MNN)/bin/python -m pip install --quiet --disable-pip-version-check "MNN==3.6.1" "numpy==2.4.6"
	touch $@

clean:
	rm -rf $(VENV) $(DEVICE) $(OLD) $(OPENVINO) $(WEBGPU) $(CUDA) $(BENCH_ORT) $(BENCH_MNN)
	rm -rf .portability examples/node/node_modules .demo demo.json build dist
