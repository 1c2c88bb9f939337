"""Fast paths: each file holds a kernel, its plain PyTorch reference and when to use which."""
