"""A short collection of data: ``python short_collection.py FOLDER`` collects what is missing."""

from __future__ import annotations

import sys

from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld

TASKS = ("reach-v3", "push-v3", "door-open-v3", "drawer-close-v3", "window-open-v3", "sweep-v3")

if __name__ == "__main__":
    settings = CollectionSettings(episodes_per_task=4, max_steps=150)
    print("started", flush=True)
    collect_metaworld(sys.argv[1], TASKS, settings, workers=1, progress=False)
