"""Hostile files for every reader: how they are made, and the processes that read them within limits."""
