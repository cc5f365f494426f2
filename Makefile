# Thin front to meson. Two commands matter to a newcomer: make demo, make check.
.DEFAULT_GOAL := all
.PHONY: all deps demo check bench fuzz lint model docs install clean

BUILD ?= build

all: $(BUILD)/release/build.ninja
	ninja -C $(BUILD)/release

$(BUILD)/release/build.ninja: | deps
	meson setup $(BUILD)/release --buildtype=release

$(BUILD)/check/build.ninja: | deps
	meson setup $(BUILD)/check -Dsabotage=true -Db_sanitize=address,undefined -Db_lundef=false

deps:
	@scripts/install-deps.sh

check: deps $(BUILD)/check/build.ninja
	ninja -C $(BUILD)/check
	meson test -C $(BUILD)/check --print-errorlogs

# DESTDIR and PREFIX as usual.
install: all
	$(if $(PREFIX),meson configure $(BUILD)/release -Dprefix=$(PREFIX))
	meson install -C $(BUILD)/release

clean:
	rm -rf $(BUILD)

docs: deps $(BUILD)/check/build.ninja
	ninja -C $(BUILD)/check tools/vfmig-tables
	$(BUILD)/check/tools/vfmig-tables > docs/states.md
	python3 tests/clauses/clauses.py write .
