.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
RUN := $(BIN)/python run.py
DEMO := -m method=full,retroinfer,quest,oracle_topk,random budget=10% task=ruler
DEMO += 'task.tasks=[niah_single_2,niah_multikey_1]' 'task.length=[2048,4096]' task.samples=1
# What `make published` runs: experiments, and what each changes. bfloat16 is several times faster
# than float32 on processors with matrix units, and what a GPU would run.
PUBLISHED := pareto_accuracy_bytes ruler_scores ruler_by_length cluster_count zone_retrieval zone_estimation
PUBLISHED += segment_size attention_tokens fidelity_recall niah_grid eviction_policy
PUBLISHED += ann_recall
# the other figures and tables of docs/paper.md, the last ones without a figure
PUBLISHED += fidelity_step_overlap fidelity_mass_cdf fidelity_cluster_mass zone_steady
PUBLISHED += estimation_on_off cache_ratio sparse_prefill throughput_by_batch max_throughput_by_task
PUBLISHED += prefill_breakdown buffer_ablation latency_vs_load
TABLES := estimation_study prefill_overlap surface matched_pcie update_share long_answers
PUBLISHED += $(TABLES)
ALL := full,oracle_topk,retroinfer,quest,infinigen,random,streaming
pareto_accuracy_bytes := method=$(ALL) budget=null,5%,10%,20% engine.batch=4 task.samples=20
ruler_by_length := method=$(ALL),magicpig,pqcache budget=10% engine.batch=4 'task.length=[2048,8192]' task.samples=8
ruler_by_length += 'task.tasks=[niah_single_2,niah_multikey_1]'
max_throughput_by_task := model=smollm2,gemma3_270m 'task.tasks=[niah_single_2,niah_multikey_1]'
sparse_prefill := task.samples=5 'task.tasks=[niah_single_2,niah_multikey_1]'
fidelity_recall := method=oracle_topk,retroinfer,quest,infinigen,streaming,random
niah_grid := model=gemma3_270m 'task.length=[4096,8192,16384,32768]'

.PHONY: help setup demo test test-slow check docs pictures figures fuzz published options hardware gpu-test gpu-first gpu-bench matrix

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## create .venv with the pinned dependencies; fetch the small model

# torch goes first and by its pin: a looser requirement could pull gigabytes of CUDA packages
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/retrobench fetch smollm2
	@touch $@

demo: $(STAMP) ## full attention, RetroInfer, Quest and two controls on RULER with SmolLM2
	$(RUN) $(DEMO)
	$(BIN)/python scripts/plots.py ruler_scores

test: $(STAMP) ## run the tests (CPU, offline), but for the slow ones
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP) ## run the slow tests: fuzzing, killed runs, launchers, Triton's interpreter, browsers
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -m slow --dist worksteal

# pyright without the packages of an active environment, whose own types are incomplete
check: $(STAMP) ## lint, format, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH=/usr/bin:/bin $(BIN)/pyright
	$(BIN)/lint-imports

docs: $(STAMP) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pictures: $(STAMP) ## draw the pictures of the documentation
	$(BIN)/python scripts/draw_architecture.py
	$(BIN)/python scripts/draw_concepts.py

fuzz: $(STAMP) ## throw a thousand bad options, files, damages and interruptions at the command line
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python scripts/fuzz.py

figures: $(STAMP) ## draw every figure that the rows on disk allow
	$(BIN)/python scripts/plots.py

matrix: $(STAMP) ## try every decoder family of transformers; the table of docs/models.md
	$(BIN)/python -m tests.support_matrix

published: $(PUBLISHED:%=published-%) ## published results (some hours; goes on where it stopped; needs gemma3_270m)

CALIBRATE = $(BIN)/python scripts/calibrate.py method=infinigen model.dtype=bfloat16
published-%: $(STAMP)
	$(if $(findstring infinigen,$($*))$(shell grep -l infinigen conf/experiment/$*.yaml),$(CALIBRATE))
	$(RUN) -m experiment=$* $($*) model.dtype=bfloat16 sweep=$*
	COLUMNS=400 $(BIN)/retrobench table --sweep $* > results/published/$*.txt
	$(BIN)/retrobench export --sweep $* --out results/published/$*.parquet
	$(BIN)/retrobench audit --sweep $*
	$(if $(filter $(TABLES),$*),,$(BIN)/python scripts/plots.py --sweep $* --out docs/figures $*)

options: $(STAMP) ## regenerate docs/options.md from the option dataclasses
	$(BIN)/python scripts/options.py

# the Python with a torch for the GPU; that of .venv (for CPUs) where the first one has none
GPU_PYTHON = $(shell $(PYTHON) -c "import torch" 2> /dev/null && echo $(PYTHON) || echo $(BIN)/python)
gpu-test: ## kernel and method parity on a CUDA device, with the installed torch
	$(GPU_PYTHON) -m pytest tests/gpu

hardware: $(STAMP) ## make the tables and figures of docs/hardware.md from the models of machines
	$(BIN)/python scripts/hardware.py
	$(BIN)/python scripts/draw_hardware.py

# the plus sign lets `make --dry-run` run it: it then says what it would do
gpu-first: ## the first 15 minutes of a GPU; --dry-run: what it would do, and the memory it takes
	+$(GPU_PYTHON) scripts/gpu_first.py $(if $(findstring n,$(filter-out ---%,$(firstword -$(MAKEFLAGS)))),--dry-run)

STAGES := ceilings kernels full_attention layers offload decode index_build
STAGE ?= all
gpu-bench: ## GPU experiments with the installed torch, e.g. STAGE=ceilings (docs/gpu.md)
	failed=0; for name in $(if $(filter all,$(STAGE)),$(STAGES),$(STAGE)); do \
	  $(GPU_PYTHON) run.py -m experiment=gpu_$$name || failed=1; \
	done; exit $$failed
