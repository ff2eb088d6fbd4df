"""What a run would cost on hardware that nobody holds: topologies, compiled programs read as text, and estimates."""
