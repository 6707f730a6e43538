# make reproduce   set up every track this machine can have, run all chapters into build/, say which numbers moved
# make check       for daily work: run what has changed since its outputs were committed, and the fast tests
# make test        everything: every track's tests, and all chapters with the network cut, compared with what is committed
# make lab         open the notebooks
# make bench       all benchmarks, or one: make bench NAME=notebooks
# make clean       remove environments and build products; data in Keras's cache stays
.PHONY: reproduce check test lab bench clean core pytorch mpc spark tracks dev lint

PYTHON = .venv/bin/python

reproduce: tracks
	.venv/bin/pprml reproduce

check: core
	.venv/bin/pprml reproduce --stale --strict
	$(PYTHON) -m pytest tests --ignore=tests/pytorch --ignore=tests/mpc -m "not slow" -n 2 --dist loadfile

test: tracks
	sh tests/run.sh

lab: core
	.venv/bin/jupyter lab notebooks

bench: core
	$(PYTHON) -m benchmarks.run $(NAME)

lint: core
	.venv/bin/ruff check && .venv/bin/ruff format --check

core:
	@sh setup_track.sh core

pytorch mpc spark: core
	@sh setup_track.sh $@

# A track that cannot be had here says why, and its chapters are left out.
tracks: core
	@for track in pytorch mpc; do sh setup_track.sh $$track || true; done

# For contributors: notebooks are compared cell by cell, and commits are checked before they are made.
dev: core
	git config diff.jupyternotebook.command ".venv/bin/git-nbdiffdriver diff"
	.venv/bin/pre-commit install

clean:
	rm -rf .venv .venv-pytorch .venv-mpc .uv .pprml build .pytest_cache .ruff_cache
	find pprml tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
	-git config --unset diff.jupyternotebook.command
