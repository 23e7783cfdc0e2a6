"""Tables and figures from rows."""
