"""What runs on the device itself: scripts that stand alone and need nothing of fedsparse."""
