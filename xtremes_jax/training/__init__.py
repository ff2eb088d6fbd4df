"""Losses, optimizer, precision, sharding, the jitted steps, the loop and checkpoints."""
