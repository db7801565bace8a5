# Two commands: `make ping` runs the experiment, `make test` runs every test. Each sets up what is missing.
PYTHON ?= python3
SKBLAB := .venv/bin/skblab
TESTED_SERIES := 6.12 6.1 7.3
KASAN_SERIES := 6.12 7.3
PACKETS ?= 1000000
EXAMPLES ?= 2000
SOAK_SECONDS ?= 3600
KILLS ?= 1000
C_SOURCES := $(wildcard kernel/init/*.c) # the agent is built with -Werror when an image is

export PYTHON

.PHONY: ping test check torture soak bench pictures setup images clean
.DEFAULT_GOAL := ping

ping: ## boot a kernel, stop it at icmp_rcv, and decide when ping gets its answer
	@tools/setup --no-dev
	$(SKBLAB) image build >/dev/null
	@if [ -t 0 ] && [ -t 1 ]; then exec $(SKBLAB) ping --walk; else exec $(SKBLAB) ping --holds 0.5,1,2 --staircase; fi

setup: ## make .venv/bin/skblab ready
	@tools/setup

images:
	@tools/setup linux-source-6.1 gdb curl iperf3 tmux mmdebstrap e2fsprogs uml-utilities tcpdump tshark jq chromium nftables zsh fish nginx-light redis-server dnsmasq-base postgresql openssh-server
	@for series in $(TESTED_SERIES); do $(SKBLAB) image build --series $$series || exit 1; done
	@for series in $(KASAN_SERIES); do $(SKBLAB) image build --series $$series --variant kasan || exit 1; done

check: setup ## every tool that reads without running
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	gcc -std=gnu11 -Wall -Wextra -Werror -fsyntax-only $(C_SOURCES)

test: images check ## every test, on every kernel series
	.venv/bin/pytest -n auto

torture: images ## a million packets under rules that come and go, a million malformed ones, ten thousand bad inputs
	SKBLAB_TORTURE_PACKETS=$(PACKETS) .venv/bin/pytest -s tests/agent/test_torture.py
	SKBLAB_MALFORMED_PACKETS=$(PACKETS) .venv/bin/pytest -s tests/agent/test_malformed.py
	SKBLAB_FUZZ_EXAMPLES=$(EXAMPLES) .venv/bin/pytest --timeout=0 tests/fuzz tests/lives/test_messages.py tests/unit/test_channel.py tests/guest/test_link_orders.py

soak: images ## an hour at full rate, and a thousand processes of labs killed
	SKBLAB_SOAK_S=$(SOAK_SECONDS) .venv/bin/pytest -s tests/agent/test_soak.py
	SKBLAB_KILLS=$(KILLS) .venv/bin/pytest -s tests/lives/test_deaths.py

bench: ## the numbers of docs/reference/numbers.md
	@tools/setup iperf3 nftables curl
	$(SKBLAB) image build >/dev/null
	$(SKBLAB) image build --series 7.3 >/dev/null
	.venv/bin/python bench/run.py
	.venv/bin/python bench/run.py --series 7.3 --only userspace

pictures: setup ## take the screenshots in docs/pictures/ again
	SKBLAB_PICTURES=1 .venv/bin/pytest tests/tui/test_picture.py tests/view/test_way_page.py tests/view/test_page.py

clean: ## remove what setup made here; images stay (skblab image rm)
	rm -rf .venv .uv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
