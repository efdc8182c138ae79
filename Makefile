# Two commands: `make demo` and `make test`. Both need Python 3.11 or newer and pip, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := train,serve,tools,sql,shop,debate,llm,mcp,openenv,dev

.PHONY: demo test test-slow test-peers lint install proto docs bench

demo: install
	$(BIN)/mrlm demo

test: install lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

# Our integrations against the packages that they are for, each in a virtual environment of its own: their pins conflict.
# The last line trains our own trainer against the scaffold of `openenv init`.
test-peers: install $(addprefix test-peer-,openenv inspect verifiers skyrl agilerl)
	$(BIN)/python -m pytest tests/train/commands/test_integrations.py

test-peer-%:
	$(PYTHON) -m venv build/peers/$*
	$(if $(filter agilerl,$*),build/peers/$*/bin/python -m pip install -q --disable-pip-version-check "$$(grep '^torch==' constraints.txt)")
	build/peers/$*/bin/python -m pip install -q --disable-pip-version-check -e ".[peer-$*]" pytest pytest-timeout hypothesis
	build/peers/$*/bin/python -m pytest tests/envs/integrations/test_$*.py

# The site, in build/docs; a warning is an error. The environments' pages and the settings are made from the code.
docs: install
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python docs/cards.py
	$(BIN)/python -m sphinx -q -W --keep-going -E -b html docs build/docs
	@echo "build/docs/index.html"

# Every benchmark and its peers, resumable by row; rewrites the tables in benchmarks/README.md.
bench: install
	$(BIN)/python benchmarks/suite.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

install: $(VENV)/.installed

# Torch comes first and by exact version, so that no other package's range can pull in a different build.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

# The generated code is checked in. grpcio-tools 1.71 writes what protobuf 5, 6 and 7 can load; it has its own venv.
proto:
	$(PYTHON) -m venv build/proto
	build/proto/bin/python -m pip install -q --disable-pip-version-check grpcio-tools==1.71.2
	build/proto/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. mrlm_envs/serving/envs.proto
