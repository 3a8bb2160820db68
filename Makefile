PYTHON ?= python3
IMAGES ?= cifar10-train.tar
TEST_IMAGES ?= cifar10-test.tar
BIN := .venv/bin

.PHONY: install docs demo test test-slow test-extras test-kernels test-cluster test-gpu bench bench-quick studies picture clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/ssl-dist demo

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile

docs: install
	$(BIN)/python -m ssl_dist.config.reference > docs/settings.md

test-slow: install
	$(BIN)/pytest -m slow --timeout 1800

test-extras: install
	$(BIN)/pip install -q -c constraints.txt -e '.[all]' pylance  # Lance opens what embed writes
	$(BIN)/pytest -n 2 -m 'extras and not slow'

# bit equality under the kernels that other CPUs would choose, and with more threads
KERNELS := MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=default \
	OMP_NUM_THREADS=2 OMP_NUM_THREADS=4
test-kernels: install
	set -e; for setting in $(KERNELS); do \
		echo "== $$setting"; \
		env OMP_WAIT_POLICY=PASSIVE $$setting $(BIN)/pytest -n 2 --dist loadfile \
			tests/augment tests/batteries tests/checkpoint tests/methods tests/training; \
	done

test-cluster: install
	$(BIN)/pytest -m hosts -rs

# needs no installation: a machine with a GPU brings its own torch, which was built for its driver
test-gpu:
	$(PYTHON) -m pytest tests/gpu -m gpu -rs

# its requirements (numpy < 2.2) are not ours: an environment of its own, with ours beneath
.venv-streaming/.installed: .venv/.installed
	$(PYTHON) -m venv .venv-streaming
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		$$(.venv-streaming/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beneath.pth
	.venv-streaming/bin/pip install -q mosaicml-streaming==0.13.0
	touch $@

bench: install .venv-streaming/.installed
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.nt_xent
	$(BIN)/python -m benchmarks.augment
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.end_to_end
	$(BIN)/python -m benchmarks.checkpoints
	$(BIN)/python -m benchmarks.mixing
	$(BIN)/python -m benchmarks.checks --source $(IMAGES)
	$(BIN)/python -m benchmarks.data --source $(IMAGES) --python "MosaicML Streaming=.venv-streaming/bin/python"
	$(BIN)/python -m benchmarks.large_store --source $(IMAGES)

# a minute: names ratios to peers that fell below the committed ones
bench-quick: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quick

# resumable; two processes share the cells, which have one worker each
STUDIES := $(BIN)/python -m benchmarks.studies --train $(IMAGES) --test $(TEST_IMAGES)
studies: install
	$(STUDIES) > /dev/null & $(STUDIES); status=$$?; wait $$! && exit $$status

# the first screen of a run's report, as a picture
RUN ?= runs/cifar10
CHROME ?= chromium
picture: install
	$(BIN)/ssl-dist report $(RUN)
	$(CHROME) --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
		--disable-component-update --disable-sync --hide-scrollbars --user-data-dir=$$(mktemp -d) \
		--force-device-scale-factor=1.5 --window-size=1180,1240 --screenshot=docs/report.png $(RUN)/report.html

clean:
	rm -rf .venv .venv-streaming build *.egg-info
