# Each target sets up what it needs by itself (.ci/setup), also on a bare Debian as root.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench golden docs clean

help: ## show these targets
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: ## make .venv ready; install what Debian lacks for it
	@.ci/setup

demo: ## print the rules, install them in a throw-away namespace, explain a packet, find a deleted rule
	@.ci/setup demo
	@.ci/demo

test: setup ## run all tests with coverage (those of the kernel need root)
	@.ci/test

lint: setup ## ruff, its formatter and mypy
	@.ci/lint

bench: setup ## time whole processes next to bare Python and others (N=20), nodes, and new connections
	@.venv/bin/python tests/bench/bench.py --runs $(or $(N),20)
	@.venv/bin/python -m tests.bench.many
	@.venv/bin/python -m tests.bench.image $(or $(N),20)
	@.venv/bin/python -m tests.bench.connections
	@.venv/bin/python -m tests.bench.webhook 2000
	@.venv/bin/python -m tests.bench.manifests

golden: setup ## rewrite the golden files that differ, and show the differences
	@.venv/bin/python -m tests.golden --write

docs: setup ## rewrite what commands print in README.md and docs/, the table of options, man pages (needs root)
	@.venv/bin/python -m tests.readme --write
	@.venv/bin/python -m tests.manual --write

clean: ## remove the environment, caches and builds
	rm -rf .venv .venv-oldest build dist *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
