"""Server side: one file a method; `base` says what they share."""
