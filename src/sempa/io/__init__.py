"""Files: whole-or-nothing writes, rows of CSV, JSON lines and parquet, safetensors, progress bars."""
