"""Reports: pages, tables and pictures."""
