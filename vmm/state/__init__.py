"""What vmm remembers: specs beside their storage, an index as cache, journals and events."""
