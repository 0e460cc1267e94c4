# Each target sets up what it needs by itself (.ci/setup), also on a bare Debian as root.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench golden clean

help: ## show these targets
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: ## make .venv ready; install what Debian lacks for it
	@.ci/setup

demo: setup ## print the documented rules, install them in a namespace, compare with the kernel
	@.ci/demo

test: setup ## run all tests with coverage (those of the kernel need root)
	@.ci/test

lint: setup ## ruff, its formatter and mypy
	@.ci/lint

bench: setup ## measure whole processes beside Python, click and iptables-restore (N=20)
	@.venv/bin/python tests/bench/bench.py --runs $(or $(N),20)
	@.venv/bin/python tests/bench/explain.py $(or $(N),20)

golden: setup ## rewrite what differs in golden/, and show it
	@.venv/bin/python -m tests.golden --write

clean: ## remove what was made here: the environment, caches, builds
	rm -rf .venv .venv-oldest build dist *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
