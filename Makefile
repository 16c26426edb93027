# make demo    the simulated arm does three tasks, moved through the real nodes; ends with a table
# make test    all tests: the unit tests in two processes, then, alone, those that start real processes
# Both make .venv and install what is missing first (once).

.PHONY: help setup demo test bench models clean
help:
	@echo "make demo    watch the simulated arm do three tasks; ends with a table"
	@echo "make test    unit tests, then tests that start the real processes"
	@echo "make bench   measure control-loop lateness, pictures and CPU; prints tables"
	@echo "make models  make demonstrations, train and trim the project's own checkpoints again (hours)"
	@echo "make setup   only install (done by the others, once)"
	@echo "make clean   remove runs, caches and build products; not .venv, data or models"

setup:
	@scripts/bootstrap

demo: setup
	@.venv/bin/policytrim demo $(ARGS)

DURATIONS = --durations=12 --durations-min=15
test: setup
	@scripts/bootstrap --tests
	@.venv/bin/python -m pytest -m "not integration and not alone" --numprocesses 2 --dist loadfile --no-loadscope-reorder $(DURATIONS) $(ARGS); unit=$$?; \
	.venv/bin/python -m pytest -m "integration or alone" --reruns 2 --reruns-delay 3 $(DURATIONS) $(ARGS); real=$$?; \
	case $$unit,$$real in 0,0|0,5|5,0) ;; *) echo "tests failed: exit code $$unit (unit), $$real (real processes)"; exit 1;; esac

clean:
	rm -rf runs build install log .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -r {} +

# benchmarks/demonstrators.py takes hours and is run by itself
BENCHMARKS = executor_overhead can_bus camera_transport control_loop
bench: setup
	@for each in $(BENCHMARKS); do echo "== $$each"; .venv/bin/python -m benchmarks.$$each || exit 1; done
	@echo "== inference_latency"; .venv/bin/python -m benchmarks.inference_latency models/*

TRIMMED = tape_box_state tape_box_state_fast tape_box_state_long tape_box_state_long_fast tape_box tape_box_long tape_box_long_fast mugs flip_mug hang_mug hang_mug_state tape_box_parallel
INTERVENTIONS = $(wildcard config/demos_*_interventions.yaml)
FIRST = config/sft_piper.yaml config/sft_state.yaml
LEARN = .venv/bin/policytrim train sft --recipe $$recipe && .venv/bin/policytrim eval --recipe $$recipe --record
models: setup
	@for recipe in $(filter-out $(INTERVENTIONS),$(wildcard config/demos_*.yaml)); do .venv/bin/policytrim demos make --recipe $$recipe || exit 1; done
	@for recipe in $(FIRST); do $(LEARN) || exit 1; done
	@for recipe in $(INTERVENTIONS); do .venv/bin/policytrim demos make --recipe $$recipe || exit 1; done
	@for recipe in $(filter-out $(FIRST),$(wildcard config/sft_*.yaml)); do $(LEARN) || exit 1; done
	@for name in $(TRIMMED); do .venv/bin/policytrim train trim --recipe config/trim_$$name.yaml --processes 2 || exit 1; done
