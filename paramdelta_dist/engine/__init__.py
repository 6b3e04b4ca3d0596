"""Executors run one function over many units, in threads here or on Ray, with every retry. Knows nothing of models, plans or outputs."""
