"""The report: one HTML page that needs nothing else, and the same page live (``serve``)."""
