"""Names of the files in an output folder, each in one place.

    OUTPUT/
      model-00001-of-00421.safetensors …    the shards, and `model.safetensors.index.json` where they are several
      config.json, tokenizer.json, …        side files: what is copied from the base, or comes with the tokenizer
      README.md                             the model card
      .paramdelta/
        plan.json                           the claim: whose the folder is. Written first, with the mark of the run
        receipts/SHARD.json                 what a finished shard proves: its digests, and the plan it belongs to
        statistics/N.json, N/SHARD.json     what a reduction over the whole model found, and what each shard adds to it
        watched/, compared/SHARD.json       what the report of a merge, or of a sweep, measured as a shard was made
        report/, report.json                the report as a page; the facts of the run
        commit.json                         every file with its size and digest. Written last: from then on it is a model
        pruning.json                        while it is removed: what goes

Beside the outputs of a template lie its pointer (`latest.json`) and `.paramdelta/latest/FINGERPRINT.json`, the day on which a
merge was begun; in the folder of a sweep `sweep.json`, which names its points, and `report/`.
"""

from __future__ import annotations

FOLDER = ".paramdelta"
PLAN = f"{FOLDER}/plan.json"
RECEIPTS = f"{FOLDER}/receipts"
STATISTICS = f"{FOLDER}/statistics"
WATCHED = f"{FOLDER}/watched"
COMPARED = f"{FOLDER}/compared"
PAGES = f"{FOLDER}/report"
"""Folder of the page about the deltas of a merge."""
REPORT = f"{FOLDER}/report.json"
COMMIT = f"{FOLDER}/commit.json"
PRUNING = f"{FOLDER}/pruning.json"
CARD = "README.md"

SWEEP = "sweep.json"
SWEEP_PAGES = "report"
"""Folder of the page that compares the points of a sweep, beside their folders."""
