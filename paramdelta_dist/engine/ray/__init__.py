"""Units on a Ray cluster. The only folder besides `jobs/ray_jobs.py` that names ray; like all of the engine it knows nothing of models."""
