"""Experiments: a configuration becomes data, a trained policy, an evaluation and a report.

What families of environments have in common is here once; what is theirs, each one's file says:
:mod:`~llmdpd_torchrl.experiments.metaworld` and :mod:`~llmdpd_torchrl.experiments.locomotion`. The
scripts in ``examples/`` run them.
"""

# Nothing is imported here: worker processes import the scripts, and `--help` should not wait for
# torch.
