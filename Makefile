# make reproduce   run the notebooks, write outputs, figures and tables, report on the ledger
# make test        every track: unit tests, ledger, prose, figures, the notebooks with the network cut
# make lab         open the notebooks
# make bench       all benchmarks, or one: make bench NAME=notebooks
# make clean       remove environments and build products; data in Keras's cache stays
.PHONY: reproduce test lab bench clean core pytorch mpc dev lint

PYTHON = .venv/bin/python

reproduce: core
	.venv/bin/pprml reproduce

test: core
	sh tests/run.sh

lab: core
	.venv/bin/jupyter lab notebooks

bench: core
	$(PYTHON) -m benchmarks.run $(NAME)

lint: core
	.venv/bin/ruff check && .venv/bin/ruff format --check

core:
	@sh setup_track.sh core

pytorch mpc: core
	@sh setup_track.sh $@

# For contributors: notebooks are compared cell by cell, and commits are checked before they are made.
dev: core
	git config diff.jupyternotebook.command ".venv/bin/git-nbdiffdriver diff"
	.venv/bin/pre-commit install

clean:
	rm -rf .venv .venv-pytorch .venv-mpc .uv .pprml build .pytest_cache .ruff_cache
	find pprml tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
	-git config --unset diff.jupyternotebook.command
