"""What happens in a sweep, in which order and on which lane: tasks, waits, work, generators."""
