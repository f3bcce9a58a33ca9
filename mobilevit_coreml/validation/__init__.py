"""A saved package compared with the PyTorch model it was made from, on any backend."""
