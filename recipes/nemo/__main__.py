"""NeMo-Run's own command line over the recipes: `python -m recipes.nemo --factory quickstart config.trainer.steps=10 --yes`.

`run.executor=slurm run.executor.nodes=3 run.executor.partition=gpu` submits: all fields of NeMo-Run's executors are there.
`--dryrun` shows what would run, `--yes` does not ask first. `python -m recipes.launch` knows the launcher's flags and explains more.
"""

from recipes.nemo.home import use_home


def main() -> None:
    """NeMo-Run's command line for `train` with all recipes as its factories."""
    use_home()
    import nemo_run as run

    from recipes.nemo.executors import local, slurm
    from recipes.nemo.factories import factories, train

    for executor in (local, slurm):
        run.cli.factory(executor)
    factories()
    run.cli.main(run.cli.entrypoint(train, type="experiment", namespace="entropic"))


if __name__ == "__main__":
    main()
