PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
DEMO := .venv/demo-ready
INSTALL := $(BIN)/python -m pip install -q -c constraints.txt -e

# one process of tests more than there are cores, as many tests wait for processes that start or end
WORKERS := $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))

.PHONY: demo examples test test-wheel lint types docs dev typed bench peers clean
demo: $(DEMO)
	$(BIN)/python -m loopwise demo $(ARGS)
examples: $(READY)  # with the environment on the path, as the job of `tune` and torchrun begin `python`
	$(BIN)/python -m loopwise demo
	$(BIN)/python examples/lightning_digits.py
	$(BIN)/python examples/hugging_face_text.py
	$(BIN)/python examples/ddp_digits.py
	$(BIN)/python -m torch.distributed.run --nproc_per_node 2 examples/ddp_digits.py
	$(BIN)/python examples/detection.py
	$(BIN)/python examples/ctc.py
	$(BIN)/python examples/heterogeneous.py
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m loopwise feed launch --group dnn=1 --group data=2 --load data examples/heterogeneous.py --group data
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m loopwise tune run examples/tune_digits.yaml
test: $(READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)
test-wheel: $(READY)
	.ci/wheel $(ARGS)
lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
types: $(READY)
	.ci/types
docs: $(READY) typed
	$(BIN)/python -m docs.generators $(ARGS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
bench: $(READY)
	$(BIN)/python -m benchmarks.sift.overhead $(ARGS)
	$(BIN)/python -m benchmarks.sift.ddp $(ARGS)
	$(BIN)/python -m benchmarks.sift.time_to_accuracy $(ARGS)
	$(BIN)/python -m benchmarks.compile.speed $(ARGS)
	$(BIN)/python -m benchmarks.compile.models --seeds 1 $(ARGS)
	$(BIN)/python -m benchmarks.compile.trust --seeds 1 $(ARGS)
	$(BIN)/python -m benchmarks.debug.overhead --seeds 1 $(ARGS)
	$(BIN)/python -m benchmarks.debug.defaults $(ARGS)
	$(BIN)/python -m benchmarks.debug.crash $(ARGS)
	$(BIN)/python -m benchmarks.debug.fuzz $(ARGS)
	$(BIN)/python -m benchmarks.debug.rules --seeds 2 $(ARGS)
	$(BIN)/python -m benchmarks.debug.nan_trap --seeds 3 $(ARGS)
	$(BIN)/python -m benchmarks.debug.nan_situations --seeds 1 $(ARGS)
	$(BIN)/python -m benchmarks.debug.preflight --seeds 2 $(ARGS)
	$(BIN)/python -m benchmarks.debug.profiler --seeds 2 $(ARGS)
	$(BIN)/python -m benchmarks.debug.page --seeds 2 $(ARGS)
	$(BIN)/python -m benchmarks.tune.running $(ARGS)
	$(BIN)/python -m benchmarks.tune.ray_kills --seeds 1 $(ARGS)
	$(BIN)/python -m benchmarks.tune.search --seeds 20 $(ARGS)
	$(BIN)/python -m benchmarks.tune.stopping $(ARGS)
	$(BIN)/python -m benchmarks.tune.kills $(ARGS)
	$(BIN)/python -m benchmarks.tune.memory --seeds 1 $(ARGS)
	$(BIN)/python -m benchmarks.feed.local --seeds 3 $(ARGS)
	$(BIN)/python -m benchmarks.feed.deaths --seeds 1 $(ARGS)
	$(BIN)/python -m benchmarks.loop $(ARGS)
	$(BIN)/python -m benchmarks.soak --seeds 1 $(ARGS)
	$(BIN)/python -m benchmarks.compile.coverage
	$(BIN)/python -m benchmarks
peers: $(READY)
	$(BIN)/python -m benchmarks.peers
dev: $(READY) typed
typed:
	mkdir -p typed/loopwise
	for part in sift compile debug tune feed report examples; do ln -sfn ../../$$part typed/loopwise/$$part; done
	for file in base/*; do ln -sfn ../../$$file typed/loopwise/$$(basename $$file); done
clean:
	rm -rf .venv .peers typed site build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv .venv
# nothing is compiled that is never imported: 29,000 files take longer than the modules that are used
$(DEMO): pyproject.toml setup.py constraints.txt | $(BIN)/python  # what the demo needs; the developer's tools take longer
	$(INSTALL) '.[demo]' --no-compile
	touch $@
$(READY): pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(INSTALL) '.[dev]' --no-compile
	touch $@ $(DEMO)
