# Thin front to meson. Two commands matter to a newcomer: make demo, make check.
.DEFAULT_GOAL := all
.PHONY: all deps demo check bench bench-long matrix fuzz model explore sim interop docs lint install clean mutate check-mutants coverage sweep torture

BUILD ?= build
SABOTAGE ?=
T ?= wire state dma control stream journal handover qmp
SECONDS ?= 600
FROM ?= 1
SEEDS ?= 100000
DEMO_BUILD := $(BUILD)/$(if $(SABOTAGE),sabotage,release)

all: $(BUILD)/release/build.ninja
	ninja -C $(BUILD)/release

# The product: optimised, no deliberate faults.
$(BUILD)/release/build.ninja: | deps
	meson setup $(BUILD)/release --buildtype=release

# The same with deliberate faults that VFMIG_SABOTAGE=NAME turns on.
$(BUILD)/sabotage/build.ninja: | deps
	meson setup $(BUILD)/sabotage --buildtype=release -Dsabotage=true

# The tests: sanitizers, debug checks and deliberate faults.
$(BUILD)/check/build.ninja: | deps
	meson setup $(BUILD)/check -Dsabotage=true -Db_sanitize=address,undefined -Db_lundef=false

deps:
	@scripts/install-deps.sh

# make demo SABOTAGE=skip-final-log shows that a fault is noticed (and fails).
demo: $(DEMO_BUILD)/build.ninja
	ninja -C $(DEMO_BUILD)
	VFMIG_SABOTAGE=$(SABOTAGE) python3 scripts/demo.py $(DEMO_BUILD)

check: $(BUILD)/check/build.ninja
	ninja -C $(BUILD)/check
	meson test -C $(BUILD)/check --print-errorlogs --timeout-multiplier 3 \
	  --num-processes $$(( ($$(nproc) * 3 + 1) / 2 ))

# The checker against devices with one deliberate bug each, and good ones: a minute or two.
check-mutants: $(BUILD)/check/build.ninja
	ninja -C $(BUILD)/check tests/check/mutants
	$(BUILD)/check/tests/check/mutants --all docs/conformance.md

bench: all
	python3 scripts/bench.py $(BUILD)/release

# The promise about the downtime, 50 times for each kind of guest: a quarter of an hour or more, or as many
# pieces of PIECE seconds as it takes; the runs of the same build are kept.
PIECE ?=
bench-long: all
	python3 scripts/bench.py $(BUILD)/release --long $(PIECE)

# Devices that fail, hang, lie and die in all pairs, of which make check runs some: ten minutes.
matrix: $(BUILD)/check/build.ninja
	ninja -C $(BUILD)/check tests/engine/engine_matrix_test
	python3 scripts/matrix.py $(BUILD)/check

# make fuzz T=wire SECONDS=60, and MERGE=1: docs/fuzzing.md. Installs clang.
fuzz: | deps
	scripts/fuzz.sh $(BUILD)/fuzz "$(T)" $(SECONDS) $(MERGE)

model: | deps
	scripts/model.sh

# All reachable states of both sides' machines; SABOTAGE as for demo, then BREAKS is the property that
# is looked at. SCOPE=pair for one of the scopes.
explore: $(DEMO_BUILD)/build.ninja
	ninja -C $(DEMO_BUILD) tests/explore/explore
	VFMIG_SABOTAGE=$(SABOTAGE) $(DEMO_BUILD)/tests/explore/explore $(if $(BREAKS),--breaks $(BREAKS)) $(SCOPE)

# Real processes are stopped at each point that they pass and killed there, cut off, frozen: docs/reliability.md.
# SEED, COUNT (of the cases that are not kills); a quarter of an hour. KEEP=FILE: all cases, in as many runs as
# it takes; an hour and a half.
COUNT ?= 400
torture: $(BUILD)/sabotage/build.ninja
	ninja -C $(BUILD)/sabotage tools/vfmig tests/engine/order_judge
	python3 scripts/torture.py $(BUILD)/sabotage --seed $(SEED) \
	  $(if $(KEEP),--keep $(KEEP),--count $(COUNT))

# One change at a time to the machines, the handover and the stream: which tests notice. MUTANTS of them,
# chosen by SEED; what was tried is kept in $(BUILD)/mutate and not tried again. SET=checker: what vfmig
# check says of such devices.
MUTANTS ?= 300
SEED ?= 1
SET ?= core
mutate: | deps
	python3 scripts/mutate.py $(BUILD)/mutate --set $(SET) --count $(MUTANTS) --seed $(SEED) --floor 80

# Whole migrations by seed, with faults at every step: FROM=1 SEEDS=100000. SABOTAGE as for demo;
# make sim TABLE=1 SEEDS=40000: by which seed each deliberate fault is caught.
sim: $(if $(TABLE),$(BUILD)/sabotage/build.ninja,$(DEMO_BUILD)/build.ninja)
	ninja -C $(if $(TABLE),$(BUILD)/sabotage,$(DEMO_BUILD)) tests/sim/vfmig-sim
	VFMIG_SABOTAGE=$(SABOTAGE) $(if $(TABLE),$(BUILD)/sabotage,$(DEMO_BUILD))/tests/sim/vfmig-sim \
	  $(if $(TABLE),--sabotage-table) --from $(FROM) --count $(SEEDS)

# Each call to the system and for memory fails once, over whole migrations, saves, restores and dry runs, the first
# time that it comes, the second and the sixth; make check has every 13th of the first ones. Ten minutes.
sweep: $(BUILD)/check/build.ninja
	ninja -C $(BUILD)/check tests/engine/sweep_test
	for nth in 0 1 5; do for scenario in unix tcp granted loading local file ask; do \
	  SWEEP_NTH=$$nth $(BUILD)/check/tests/engine/sweep_test $$scenario 1 || exit 1; done; done

# Which lines and branches of the core, the engine and the stream the tests take; installs gcovr.
coverage: | deps
	scripts/coverage.sh $(BUILD)/coverage

# A Linux guest in stock QEMU, both from Debian, with our devices; SABOTAGE as for demo.
interop: $(DEMO_BUILD)/build.ninja
	ninja -C $(DEMO_BUILD)
	VFMIG_SABOTAGE=$(SABOTAGE) python3 scripts/interop.py $(DEMO_BUILD) $(BUILD)/interop

# Documents that are made from tables.
docs: $(BUILD)/check/build.ninja
	ninja -C $(BUILD)/check tools/vfmig-tables
	$(BUILD)/check/tools/vfmig-tables > docs/states.md
	python3 scripts/doc_table.py docs/trace.md $(BUILD)/check/tools/vfmig-tables --trace
	$(BUILD)/check/tools/vfmig-tables --probes > docs/probes.md
	$(BUILD)/check/tools/vfmig-tables --metrics > docs/metrics.md
	ninja -C $(BUILD)/check tests/core/handover_test
	python3 scripts/doc_table.py docs/handover.md $(BUILD)/check/tests/core/handover_test --table
	$(BUILD)/check/tools/vfmig-tables --rules > docs/rules.md
	python3 tests/clauses/clauses.py write .
	python3 scripts/doc_table.py docs/reliability.md python3 tests/mutation/bugs.py table
	python3 tests/foreign/quirks.py write .

lint: | deps
	python3 tests/tidy/tidy.py .
	git ls-files '*.c' '*.h' | xargs clang-format --dry-run

# DESTDIR and PREFIX as usual.
install: all
	$(if $(PREFIX),meson configure $(BUILD)/release -Dprefix=$(PREFIX))
	meson install -C $(BUILD)/release

clean:
	rm -rf $(BUILD)
