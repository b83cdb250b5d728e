"""Methods that make a trained model forget: one file each, `base` says what they share."""
