"""A Core ML package: its inputs and outputs, its metadata, its files."""
