# Two commands: `make demo` shows the main job, `make test` runs the tests. Both set up what they need.
SHELL := /bin/bash
# Compiled modules are what a user has, too; without them every command compiles all it loads.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(wildcard native/*/*.[ch] native/build.py native/flags.txt) setup.py pyproject.toml
# For containers; for virtual machines: the hypervisor, libvirt, what makes their disks; for tests.
CONTAINER_PACKAGES := python3-venv python3-dev gcc libc6-dev libseccomp-dev nftables iproute2 mmdebstrap busybox-static
GUEST_PACKAGES := qemu-system-x86 qemu-system-common libvirt-daemon-system libvirt-clients libvirt-dev pkg-config e2fsprogs lz4 zstd
PACKAGES := $(CONTAINER_PACKAGES) $(GUEST_PACKAGES)
TEST_PACKAGES := erofs-utils cpio libcap2-bin make user-mode-linux strace util-linux procps wget netbase libxml2-utils

.PHONY: demo test unit integration behaviour test-kvm lint bench bench-containers bench-guests clean packages test-packages asan fuzz

demo: $(VENV)/.installed
	@configs/demo/run.sh "$(CURDIR)/$(BIN)/vmm"

test: $(VENV)/.dev
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest -q tests --ignore tests/machines

unit integration behaviour: $(VENV)/.dev
	@$(BIN)/python -m pytest -q tests/$@

# Real KVM, and cgroup2 alone: minutes, in a machine that is emulated whole.
test-kvm: $(VENV)/.dev
	@$(BIN)/python -m pytest -q tests/machines

lint: $(VENV)/.dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check -q . && $(BIN)/mypy vmm tests

asan: $(VENV)/.dev
	@$(MAKE) --no-print-directory -C native PYTHON="$(CURDIR)/$(BIN)/python" asan check suites

fuzz: $(VENV)/.dev
	@$(MAKE) --no-print-directory -C native PYTHON="$(CURDIR)/$(BIN)/python" fuzz

bench: bench-containers bench-guests

bench-containers: $(VENV)/.dev
	@$(BIN)/python bench/run.py

bench-guests: $(VENV)/.dev
	@PYTHONPATH=. $(BIN)/python bench/guests.py

packages:
	@configs/install-packages.sh $(PACKAGES)

test-packages:
	@configs/install-packages.sh $(PACKAGES) $(TEST_PACKAGES)

$(VENV)/.installed: $(NATIVE) | packages
	@test -x $(BIN)/python || { echo "making a virtual environment in .venv"; $(PYTHON) -m venv $(VENV); }
	@echo "building the native core and installing vmm into .venv"
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[libvirt]'
	@touch $@

$(VENV)/.dev: $(VENV)/.installed | test-packages
	@echo "installing the development tools into .venv"
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[dev,libvirt]'
	@touch $@

clean:
	@rm -rf $(VENV) build dist *.egg-info vmm/libexec vmm/_native*.so vmm/_native.c native/build .mypy_cache .ruff_cache .pytest_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
