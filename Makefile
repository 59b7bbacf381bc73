# Each target makes the environment that it needs; nothing has to be installed by hand.
#   make demo [ARGS="--rounds 5"]   a whole federated run on real data, then its audit
#   make test                       the whole test suite
#   make lint | proto | bench       checks | regenerate protobuf code | side by side with stock Flower
# PYTHON chooses the interpreter (3.11 or newer), PIP_ARGS goes to pip, for those who want
# another torch build: make demo PIP_ARGS="--index-url ..."
PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

# A caller's Python settings must not leak into ours.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint proto proto-check bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/fedchain demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),-q -n 2 --dist worksteal)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

PROTOC = PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto

proto: $(VENV)/.dev
	$(PROTOC) --python_out=proto --mypy_out=proto proto/fedchain_proto/wire.proto

# The generated code in the repository is what the .proto file gives today.
proto-check: $(VENV)/.dev
	rm -rf $(VENV)/fresh && mkdir -p $(VENV)/fresh
	$(PROTOC) --python_out=$(VENV)/fresh --mypy_out=$(VENV)/fresh proto/fedchain_proto/wire.proto
	diff -r $(VENV)/fresh/fedchain_proto/wire_pb2.py proto/fedchain_proto/wire_pb2.py
	diff -r $(VENV)/fresh/fedchain_proto/wire_pb2.pyi proto/fedchain_proto/wire_pb2.pyi

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.side_by_side $(ARGS)

# A stamp is written last: an installation that was interrupted is done again.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "fedchain needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_ARGS) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_ARGS) -e '.[dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
