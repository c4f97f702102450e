"""Where bytes live: checkpoints, disk reads, pages, arenas and budgets."""
