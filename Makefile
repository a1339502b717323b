# A thin front to CMake: `make help` lists what there is.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
PRESET ?= release
MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf
TEXT := /usr/share/common-licenses/GPL-3

.PHONY: all build test-build deps deps-test demo check install model models clean help

all: build

help:
	@echo "make            build build/fovea and build/libfovea.so"
	@echo "make demo       install what is missing, build, fetch the small model, compare attention on a real document"
	@echo "make check      install what is missing, build, run every test"
	@echo "make install    install under PREFIX (default /usr/local), DESTDIR honoured"
	@echo "make model      fetch SmolLM2 (92 MiB); make models also fetches Gemma 3 (235 MiB)"

deps:
	@scripts/install-deps.sh build

deps-test:
	@scripts/install-deps.sh build test models

build: deps
	@cmake --preset $(PRESET) -DFOVEA_TESTS=OFF $(if $(PREFIX),-DCMAKE_INSTALL_PREFIX=$(PREFIX)) > /dev/null
	@cmake --build --preset $(PRESET) -j$(JOBS)

test-build: deps-test
	@cmake --preset $(PRESET) -DFOVEA_TESTS=ON > /dev/null
	@cmake --build --preset $(PRESET) -j$(JOBS)

model:
	@scripts/install-deps.sh models
	@python3 scripts/fetch-models.py smollm2

models:
	@scripts/install-deps.sh models
	@python3 scripts/fetch-models.py all

demo: build model
	@scripts/demo.sh

check: test-build models
	@cd build && ctest --output-on-failure -j$(JOBS)

install: build
	cmake --install build

clean:
	rm -rf build build-debug build-sanitize
