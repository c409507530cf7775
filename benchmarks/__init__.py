"""What the repository measures: speed, and studies of trained policies."""
