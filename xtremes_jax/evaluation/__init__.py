"""From predictions to scores: text, and the metrics of XTREME-S."""
