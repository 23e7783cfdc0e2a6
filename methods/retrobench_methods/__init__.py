"""The methods that ship with retrobench: one public module (or folder) per method."""
