"""Train LLM-Driven Policy Diffusion on Meta-World and evaluate it on seen and unseen tasks.

collect -> embed -> train -> evaluate -> video -> report; a stage whose output exists is skipped.
The same as ``llmdpd train``. Run with ``--help`` for the settings, which live in ``configs/``. What
the stages do is in ``llmdpd_torchrl/experiments``; ``llmdpd_by_hand.py`` beside this file puts the
parts together by hand.
"""

import sys

from llmdpd_torchrl.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
