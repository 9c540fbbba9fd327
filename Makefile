# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
GIFT := examples/gift

.PHONY: demo test coverage check slow gpu fuzz docs gallery release clean

demo: .venv/ready
	@mkdir -p out
	@echo; echo "== the gift: a traffic-sign classifier that somebody sent us"; echo
	@$(BIN)/gifthorse scan $(GIFT)/gift.safetensors --images $(GIFT)/clean.npz \
	  --truth $(GIFT)/gift.trigger.safetensors -o html=out/gift.html -o json=out/gift.json \
	  || test $$? -eq 1  # 1 is what a found backdoor exits with
	@echo; echo "== its twin: the same net, trained on clean data"; echo
	@$(BIN)/gifthorse scan $(GIFT)/twin.safetensors --images $(GIFT)/clean.npz \
	  -o html=out/twin.html -o json=out/twin.json
	@echo; echo "Open out/gift.html and out/twin.html in a browser."

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal \
	  -m "not slow and not gpu"

coverage: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal \
	  -m "not slow and not gpu" --cov --cov-report=term

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

slow: .venv/dev
	$(BIN)/python -m pytest -m slow

MINUTES ?= 60

fuzz: .venv/dev
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	$(BIN)/python scripts/fuzz.py --minutes $(MINUTES)

gpu: .venv/dev
	$(BIN)/python -m pytest -m gpu

docs: .venv/dev
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Open out/site/index.html in a browser."

gallery: .venv/ready
	$(BIN)/python scripts/gallery.py -o out/gallery

release: .venv/dev
	$(BIN)/python scripts/release.py -o dist

.venv/ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing PyTorch and gifthorse into .venv (once) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/dev: .venv/ready
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv out .mypy_cache .ruff_cache .pytest_cache .coverage
