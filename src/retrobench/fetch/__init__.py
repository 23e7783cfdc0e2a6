"""What has to be on disk before a run: models and data, fetched by ``retrobench fetch`` alone."""
