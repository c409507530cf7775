"""Train LLM-Driven Policy Diffusion on recorded locomotion and evaluate it by normalised score.

collect -> embed -> train -> evaluate -> video -> report; a stage whose output exists is skipped.
The same as ``llmdpd train-d4rl``. Run with ``--help`` for the settings, which live in ``configs/``.
With no data given, a small file of a half cheetah at several speeds is generated first.
"""

import sys

from llmdpd_torchrl.commands.train_d4rl import main

if __name__ == "__main__":
    sys.exit(main())
