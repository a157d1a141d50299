# make demo            Run the shipped model on shipped recordings; one minute, no broker, no TensorFlow.
# make check           Check format, lint and types, and run the tests that need neither a server nor TensorFlow; 5 minutes.
# make test            Run all tests; installs the servers they start where the user may.
# make coverage        Run all tests and report branch coverage.
# make format          Format the code and apply safe lint fixes.
# make docs            Build the documentation as a site in build/site.
# make reference       Write the reference pages from the code again.
# make lock            Write requirements/*.txt from pyproject.toml; LOCK_OPTIONS=--upgrade takes the newest versions.
# make sbom            Write the bill of materials of the gateway, build/sbom.cdx.json.
# make audit           Look for advisories on the locked versions; exits with 1 if there is one.
# make sample-bundle   Generate the shipped recordings and train the shipped model again, from seeds.

PYTHON ?= python3
RUN := .venv
DEV := .venv-dev
TOOLS := .venv-tools
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
export TF_CPP_MIN_LOG_LEVEL ?= 3
export TF_ENABLE_ONEDNN_OPTS ?= 0

.PHONY: demo test coverage servers check format docs reference lock sbom audit sample-bundle evidence recipes live-latency disk-writes kill-test ablations io-faults fuzz soak arm-test clean

demo: $(RUN)/.ready
	$(RUN)/bin/stream-gru demo $(DEMO_OPTIONS)

test: $(DEV)/.ready servers
	$(DEV)/bin/python -m pytest -n auto --dist loadfile $(PYTEST_OPTIONS)

# Branch coverage takes longer.  It is reported for the package, and for the files on which exact recovery depends.
DURABLE := runtime/checkpoint/* runtime/daemon.py pipeline/state_table.py pipeline/row_schema.py connectors/sinks/file.py
DURABLE += connectors/sinks/file_recovery.py connectors/sinks/outbox.py connectors/mqtt/ack_tracker.py
coverage: $(DEV)/.ready servers
	$(DEV)/bin/python -m pytest -n auto --dist loadfile --cov --cov-report= $(PYTEST_OPTIONS)
	$(DEV)/bin/coverage report --fail-under=95 | tail -n 1
	$(DEV)/bin/coverage report -m --include="$$(echo $(DURABLE:%='stream_gru/%') | tr ' ' ,)"

# Servers and tools that the system tests start on free loopback ports; tests skip, by name, what is not installed.
servers:
	@missing=; for name in mosquitto:mosquitto mosquitto_sub:mosquitto-clients promtool:prometheus curl:curl \
	    systemd-analyze:systemd; do \
	  PATH=$$PATH:/usr/sbin command -v $${name%%:*} > /dev/null || missing="$$missing $${name##*:}"; \
	done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing \
	    > /dev/null || echo "cannot be installed:$$missing; their tests are skipped"; \
	elif [ -n "$$missing" ]; then echo "not installed:$$missing; their tests are skipped"; fi

check: $(DEV)/.ready
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/ruff check .
	$(DEV)/bin/mypy
	$(DEV)/bin/python -m pytest -n auto --dist loadfile -m "not servers and not train" $(PYTEST_OPTIONS)

format: $(DEV)/.ready
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

docs: $(DEV)/.ready
	$(DEV)/bin/mkdocs build --strict

reference: $(DEV)/.ready
	$(DEV)/bin/python docs/make_reference.py

# One lock for all versions of Python and both processors.  What gateway.txt and build.txt hold, dev.txt holds in the
# same version.
COMPILE = $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --only-binary :all: \
  --custom-compile-command "make lock" $(LOCK_OPTIONS)
lock: $(TOOLS)/.ready
	$(COMPILE) pyproject.toml --all-extras --output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --extra binary --constraints requirements/dev.txt --output-file requirements/gateway.txt
	$(COMPILE) --group build --constraints requirements/dev.txt --output-file requirements/build.txt
	$(COMPILE) --group tools --output-file requirements/tools.txt

sbom: $(TOOLS)/.ready
	mkdir -p build
	$(TOOLS)/bin/cyclonedx-py requirements requirements/gateway.txt --pyproject pyproject.toml --output-reproducible \
	  --output-file build/sbom.cdx.json

audit:
	@$(MAKE) --silent $(TOOLS)/.ready || { echo "audit skipped: its tools cannot be installed"; exit 0; }; \
	$(TOOLS)/bin/python requirements/audit.py

# Pump k depends only on the seed and on k.  Pumps 1 to 6 are for training, 7 and 8 are held out.
sample-bundle: $(DEV)/.ready
	rm -rf sample_data/train sample_data/held_out
	$(DEV)/bin/stream-gru simulate pump --seed 2026 --hours 10 --pumps 6 --gzip --out sample_data/train
	$(DEV)/bin/stream-gru simulate pump --seed 2026 --hours 2 --pumps 2 --first 7 --one-file --gzip --out sample_data/held_out
	$(DEV)/bin/stream-gru train sample_data/pump.toml --out sample_data/pump.bundle

# Results on public recordings; needs STREAM_GRU_DATA and most of an hour.
evidence: $(DEV)/.ready
	$(DEV)/bin/python -m tests.evidence out

# Results of the recipes; MNIST and IMDB need STREAM_GRU_DATA or a network.  About an hour.
recipes: $(DEV)/.ready
	for name in mnist-gru mnist-functional mnist-rnn imdb-gru imdb-long vowels sine; do \
	  $(DEV)/bin/stream-gru recipe run $$name --out out/$$name || exit 1; done
	for name in mnist-gru mnist-rnn imdb-gru vowels sine; do \
	  $(DEV)/bin/stream-gru recipe run $$name --best --out out/$$name-best || exit 1; done
	$(DEV)/bin/stream-gru recipe run mnist-gru --compare --out out/compare

# Latency from publish to prediction through a broker, at 100 and 1000 messages per second.
live-latency: $(DEV)/.ready servers
	$(DEV)/bin/python -m tests.evidence.live_latency

# Bytes that a daemon writes to the disk for each sample.
disk-writes: $(DEV)/.ready servers
	$(DEV)/bin/python -m tests.evidence.disk_writes

# Kill the daemon KILLS times: states and outputs must equal those of an uninterrupted run.
KILLS ?= 1000
kill-test: $(DEV)/.ready servers
	$(DEV)/bin/python -m tests.kill mqtt --kills $(KILLS)
	$(DEV)/bin/python -m tests.kill replay --kills $(KILLS)

# The kill test with one safeguard removed: the test must detect each.
ablations: $(DEV)/.ready servers
	for part in ack packets truncate; do $(DEV)/bin/python -m tests.kill ablation --which $$part || exit 1; done

# Let each file system call fail, once and permanently.
io-faults: $(DEV)/.ready
	$(DEV)/bin/python -m tests.kill io --all --kind replay --kind recovery
	$(DEV)/bin/python -m tests.kill io --kind mqtt --cases 120

# Feed hostile bytes to every decoder, the bundle loader, the configuration and the HTTP server.
CASES ?= 1000000
fuzz: $(DEV)/.ready
	$(DEV)/bin/python -m tests.fuzz --cases $(CASES)

# Run at a constant rate with faults: memory, threads and open files must not grow.
MINUTES ?= 60
RATE ?= 400
soak: $(DEV)/.ready servers
	$(DEV)/bin/python -m tests.evidence.soak --minutes $(MINUTES) --rate $(RATE)

# Boot an emulated Pi 3 and Pi 4: neither batches, a broker, kills nor power cuts may change a byte on ARM64.
arm-test: $(DEV)/.ready
	$(DEV)/bin/python -m tests.arm

$(RUN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(RUN)
	$(RUN)/bin/python $(PIP_INSTALL) --editable .
	touch $@

$(DEV)/.ready: pyproject.toml requirements/dev.txt
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python $(PIP_INSTALL) --require-hashes --requirement requirements/dev.txt
	$(DEV)/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

$(TOOLS)/.ready: requirements/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python $(PIP_INSTALL) --require-hashes --requirement requirements/tools.txt
	touch $@

clean:
	rm -rf $(RUN) $(DEV) $(TOOLS) build dist *.egg-info
