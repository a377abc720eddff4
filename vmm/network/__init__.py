"""Networks of workloads: bridge, addresses, packet filter, published ports and names."""
