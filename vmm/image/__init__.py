"""Images: references, the OCI layout they are stored in, and how they get there."""
