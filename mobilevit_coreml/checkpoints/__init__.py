"""Loading of checkpoints: from files, directories and the Hugging Face hub, without running code from them."""
