"""From predictions to scores: greedy decoding, and the metrics of XTREME-S."""
