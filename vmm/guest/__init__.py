"""What a guest boots: root images of layers, writable disks, kernels and initramfs."""
