"""Recipes for NeMo-Run: each a factory, an executor for each way to run them, and NeMo-Run's own command line.

`python -m recipes.launch` is made of these. They run in the environment of `make env-launch`, which has neither torch nor
megatron nor vllm; the job they submit runs slurm/train.sbatch in the environment of `make env`, which has no NeMo-Run.
"""
