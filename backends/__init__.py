"""One package per kind of workload, loaded through the entry points ``vmm.backends``."""
