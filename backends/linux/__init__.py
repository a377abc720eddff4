"""What any Linux kernel runs of a workload, on the host or in a guest: the launch plan, pure."""
