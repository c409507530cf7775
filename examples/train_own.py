"""Train LLM-Driven Policy Diffusion on tasks of your own, which a YAML file describes.

load -> embed -> train -> evaluate -> video -> report; a stage whose output exists is skipped. The
same as ``llmdpd train-own``. Run with ``--help`` for the settings, which live in ``configs/``; task
files are beside this one, in ``own_tasks/``.
"""

import sys

from llmdpd_torchrl.commands.train_own import main

if __name__ == "__main__":
    sys.exit(main())
