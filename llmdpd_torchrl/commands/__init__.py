"""What ``llmdpd`` runs: a file a command, each with ``main(arguments)``, its exit code."""
