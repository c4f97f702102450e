"""Hardware, model and workload in; a policy with its predicted time and memory out."""
