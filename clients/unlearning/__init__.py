"""The clients' side of methods that make a trained model forget: one file each."""
