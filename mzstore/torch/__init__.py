"""What needs PyTorch to be imported; nothing else in mzstore does."""
