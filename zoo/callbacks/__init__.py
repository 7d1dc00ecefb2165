"""What a run does besides training: evaluation, history, report, checkpoints, progress."""
