"""Losses: pure tensor math on encoded rows. They never see pixels and never call torch.distributed."""
