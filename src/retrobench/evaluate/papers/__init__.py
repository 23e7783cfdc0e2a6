"""Models of machines beside what the papers state: the tables of docs/hardware.md."""
